// NCCL of the emulated device: every rank is a process, and messages are MPI's. What is sent is copied when the stream
// comes to it, and what arrives is copied when all of a group is there, because device memory is closed in between.
#include "nccl.h"

#include <mpi.h>

#include <algorithm>
#include <memory>
#include <vector>

#include "runtime.hpp"

struct ncclComm {
  MPI_Comm comm = MPI_COMM_NULL;
  int rank = 0, size = 0;
  cudaStream_t stream = nullptr;  // of its first call
};

namespace {

constexpr int kTag = 4711;  // of the messages by which the ranks of a communicator find each other

struct Call {
  enum class Kind { send, receive, broadcast, all_reduce } kind;
  const void* from;
  void* to;
  std::size_t count;
  ncclDataType_t type;
  int peer;
  ncclRedOp_t op;
  ncclComm_t comm;
  cudaStream_t stream;
};

std::size_t size_of(ncclDataType_t type) {
  switch (type) {
    case ncclUint8: return 1;
    case ncclInt32:
    case ncclFloat32: return 4;
    case ncclFloat64: return 8;
  }
  return 0;
}
MPI_Datatype mpi_type(ncclDataType_t type) {
  switch (type) {
    case ncclUint8: return MPI_UINT8_T;
    case ncclInt32: return MPI_INT32_T;
    case ncclFloat32: return MPI_FLOAT;
    case ncclFloat64: return MPI_DOUBLE;
  }
  return MPI_DATATYPE_NULL;
}
MPI_Op mpi_op(ncclRedOp_t op) { return op == ncclSum ? MPI_SUM : op == ncclMax ? MPI_MAX : MPI_MIN; }

/// The calls of one group on one stream: begins when the stream is there, and ends when every call has.
class Group {
 public:
  explicit Group(std::vector<Call> calls) : calls_(std::move(calls)) {}
  bool advance() {
    if (!begun_) begin();
    int done = 0;
    MPI_Testall(int(requests_.size()), requests_.data(), &done, MPI_STATUSES_IGNORE);
    if (done == 0) return false;
    for (std::size_t i = 0; i < calls_.size(); ++i) {
      if (calls_[i].kind != Call::Kind::send) std::memcpy(calls_[i].to, buffers_[i].data(), buffers_[i].size());
    }
    return true;
  }

 private:
  void begin() {
    begun_ = true;
    buffers_.resize(calls_.size());
    requests_.resize(calls_.size(), MPI_REQUEST_NULL);
    for (std::size_t i = 0; i < calls_.size(); ++i) {
      const Call& c = calls_[i];
      auto& buffer = buffers_[i];
      buffer.resize(c.count * size_of(c.type));
      const bool gives = c.kind == Call::Kind::send || c.kind == Call::Kind::all_reduce ||
                         (c.kind == Call::Kind::broadcast && c.peer == c.comm->rank);
      if (gives) std::memcpy(buffer.data(), c.from, buffer.size());
      const int n = int(c.count);
      switch (c.kind) {
        case Call::Kind::send:
          MPI_Isend(buffer.data(), n, mpi_type(c.type), c.peer, 0, c.comm->comm, &requests_[i]);
          break;
        case Call::Kind::receive:
          MPI_Irecv(buffer.data(), n, mpi_type(c.type), c.peer, 0, c.comm->comm, &requests_[i]);
          break;
        case Call::Kind::broadcast:
          MPI_Ibcast(buffer.data(), n, mpi_type(c.type), c.peer, c.comm->comm, &requests_[i]);
          break;
        case Call::Kind::all_reduce:
          MPI_Iallreduce(MPI_IN_PLACE, buffer.data(), n, mpi_type(c.type), mpi_op(c.op), c.comm->comm, &requests_[i]);
          break;
      }
    }
  }

  std::vector<Call> calls_;
  std::vector<std::vector<char>> buffers_;
  std::vector<MPI_Request> requests_;
  bool begun_ = false;
};

int open_groups = 0;
std::vector<Call> collected;

void enqueue_collected() {
  while (!collected.empty()) {
    const cudaStream_t stream = collected.front().stream;
    std::vector<Call> own;
    const auto other = std::stable_partition(collected.begin(), collected.end(),
                                             [&](const Call& call) { return call.stream != stream; });
    own.assign(other, collected.end());
    collected.erase(other, collected.end());
    const auto group = std::make_shared<Group>(std::move(own));
    flanmoe::emulation::enqueue(stream, [group] { return group->advance(); });
  }
}

ncclResult_t add(const Call& call) {
  if (call.comm == nullptr || call.peer < 0 || call.peer >= call.comm->size) return ncclInvalidArgument;
  const std::size_t bytes = call.count * size_of(call.type);
  // Messages of a communicator meet in the order in which ranks come to them, and only a stream has the same order on
  // every rank.
  if (call.comm->stream == nullptr) call.comm->stream = call.stream;
  if (call.comm->stream != call.stream) throw flanmoe::emulation::Fault("an NCCL communicator on two streams");
  if (call.kind != Call::Kind::receive) flanmoe::emulation::expect_device(call.from, bytes, "what NCCL sends");
  if (call.kind != Call::Kind::send) flanmoe::emulation::expect_device(call.to, bytes, "what NCCL receives");
  collected.push_back(call);
  if (open_groups == 0) enqueue_collected();
  return ncclSuccess;
}

}  // namespace

const char* ncclGetErrorString(ncclResult_t result) {
  switch (result) {
    case ncclSuccess: return "no error";
    case ncclInvalidArgument: return "invalid argument";
    case ncclInvalidUsage: return "invalid usage";
  }
  return "unknown result code";
}

/// The rank of the world that made it, and which one of its own it is.
ncclResult_t ncclGetUniqueId(ncclUniqueId* id) {
  static int made = 0;
  int rank = 0;
  MPI_Comm_rank(MPI_COMM_WORLD, &rank);
  const int words[2] = {rank, made++};
  std::memcpy(id->internal, words, sizeof words);
  return ncclSuccess;
}

/// Everybody tells the maker of the id who he is, and is told who the others are.
ncclResult_t ncclCommInitRankConfig(ncclComm_t* comm, int ranks, ncclUniqueId id, int rank, ncclConfig_t* config) {
  int maker = 0, own = 0;
  std::memcpy(&maker, id.internal, sizeof maker);
  MPI_Comm_rank(MPI_COMM_WORLD, &own);
  // Of two communicators that are under way both kernels must fit on a GPU.
  if (rank < 0 || rank >= ranks || config->maxCTAs < 1 || config->maxCTAs > 32) return ncclInvalidArgument;
  std::vector<int> world(static_cast<std::size_t>(ranks), own);
  if (own == maker) {
    for (int i = 1; i < ranks; ++i) {
      int who[2];  // rank here, rank in the world
      MPI_Recv(who, 2, MPI_INT, MPI_ANY_SOURCE, kTag, MPI_COMM_WORLD, MPI_STATUS_IGNORE);
      world[std::size_t(who[0])] = who[1];
    }
    for (const int to : world) {
      if (to != own) MPI_Send(world.data(), ranks, MPI_INT, to, kTag + 1, MPI_COMM_WORLD);
    }
  } else {
    const int who[2] = {rank, own};
    MPI_Send(who, 2, MPI_INT, maker, kTag, MPI_COMM_WORLD);
    MPI_Recv(world.data(), ranks, MPI_INT, maker, kTag + 1, MPI_COMM_WORLD, MPI_STATUS_IGNORE);
  }
  MPI_Group all = MPI_GROUP_NULL, members = MPI_GROUP_NULL;
  MPI_Comm_group(MPI_COMM_WORLD, &all);
  MPI_Group_incl(all, ranks, world.data(), &members);
  *comm = new ncclComm{MPI_COMM_NULL, rank, ranks};
  MPI_Comm_create_group(MPI_COMM_WORLD, members, kTag, &(*comm)->comm);
  MPI_Group_free(&members);
  MPI_Group_free(&all);
  return ncclSuccess;
}

ncclResult_t ncclCommDestroy(ncclComm_t comm) {
  flanmoe::emulation::run_all();
  MPI_Comm_free(&comm->comm);
  delete comm;
  return ncclSuccess;
}
ncclResult_t ncclCommAbort(ncclComm_t comm) {
  delete comm;
  return ncclSuccess;
}

ncclResult_t ncclGroupStart() {
  ++open_groups;
  return ncclSuccess;
}
ncclResult_t ncclGroupEnd() {
  if (open_groups == 0) return ncclInvalidUsage;
  if (--open_groups == 0) enqueue_collected();
  return ncclSuccess;
}

ncclResult_t ncclSend(const void* from, std::size_t count, ncclDataType_t type, int peer, ncclComm_t comm,
                      cudaStream_t stream) {
  return add({Call::Kind::send, from, nullptr, count, type, peer, ncclSum, comm, stream});
}
ncclResult_t ncclRecv(void* to, std::size_t count, ncclDataType_t type, int peer, ncclComm_t comm,
                      cudaStream_t stream) {
  return add({Call::Kind::receive, nullptr, to, count, type, peer, ncclSum, comm, stream});
}
ncclResult_t ncclBroadcast(const void* from, void* to, std::size_t count, ncclDataType_t type, int root,
                           ncclComm_t comm, cudaStream_t stream) {
  return add({Call::Kind::broadcast, from, to, count, type, root, ncclSum, comm, stream});
}
ncclResult_t ncclAllReduce(const void* from, void* to, std::size_t count, ncclDataType_t type, ncclRedOp_t op,
                           ncclComm_t comm, cudaStream_t stream) {
  return add({Call::Kind::all_reduce, from, to, count, type, 0, op, comm, stream});
}
