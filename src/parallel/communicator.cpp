// Ownership of communicators, and the collectives with the same count on every rank.
#include "parallel/communicator.hpp"

#include <algorithm>
#include <array>
#include <cstdio>
#include <cstdlib>
#include <exception>
#include <utility>

#include "parallel/mpi_type.hpp"

namespace flanmoe {

using detail::Collective;
using detail::largest_count;
using detail::mpi_type;

namespace {

std::string mpi_message(int code) {
  std::array<char, MPI_MAX_ERROR_STRING> text{};
  int length = 0;
  if (MPI_Error_string(code, text.data(), &length) != MPI_SUCCESS) return fmt::format("error code {}", code);
  return {text.data(), std::size_t(length)};
}

bool mpi_runs() {
  int started = 0, ended = 0;
  MPI_Initialized(&started);
  MPI_Finalized(&ended);
  return started != 0 && ended == 0;
}

MPI_Op mpi_op(ReduceOp op) {
  switch (op) {
    case ReduceOp::sum: return MPI_SUM;
    case ReduceOp::min: return MPI_MIN;
    case ReduceOp::max: return MPI_MAX;
  }
  return MPI_OP_NULL;
}

/// The duplicate of `comm`, which returns errors instead of ending the program.
MPI_Comm own_duplicate(MPI_Comm comm) {
  MPI_Comm copy = MPI_COMM_NULL;
  if (const int code = MPI_Comm_dup(comm, &copy); code != MPI_SUCCESS) fail("MPI_Comm_dup: {}", mpi_message(code));
  return copy;
}

int count_of(std::size_t count, const char* operation, const std::string& name) {
  if (count > std::size_t(largest_count)) {
    fail("{} on communicator {}: {} elements for one rank are more than MPI can count ({})", operation, name, count,
         largest_count);
  }
  return int(count);
}

}  // namespace

MpiEnvironment::MpiEnvironment(int* argc, char*** argv) {
  int provided = MPI_THREAD_SINGLE;
  const int code = MPI_Init_thread(argc, argv, MPI_THREAD_SERIALIZED, &provided);
  if (code != MPI_SUCCESS) fail("MPI_Init_thread: {}", mpi_message(code));
  if (provided < MPI_THREAD_FUNNELED) {
    fail("MPI gives thread level {}; at least MPI_THREAD_FUNNELED ({}) is needed", provided, int(MPI_THREAD_FUNNELED));
  }
  MPI_Comm_set_errhandler(MPI_COMM_WORLD, MPI_ERRORS_RETURN);
  MPI_Comm_set_errhandler(MPI_COMM_SELF, MPI_ERRORS_RETURN);
}

MpiEnvironment::~MpiEnvironment() {
  if (std::uncaught_exceptions() > 0) abort(1);
  MPI_Finalize();
}

int MpiEnvironment::world_rank() {
  int rank = 0;
  if (mpi_runs()) MPI_Comm_rank(MPI_COMM_WORLD, &rank);
  return rank;
}

void MpiEnvironment::abort(int exit_code) {
  std::fflush(stdout);
  std::fflush(stderr);
  if (mpi_runs()) MPI_Abort(MPI_COMM_WORLD, exit_code);
  std::_Exit(exit_code);
}

Communicator::Communicator(MPI_Comm owned, std::string name) : comm_(owned), name_(std::move(name)) {
  if (comm_ == MPI_COMM_NULL) {
    size_ = 0;
    return;
  }
  check(MPI_Comm_set_errhandler(comm_, MPI_ERRORS_RETURN), "MPI_Comm_set_errhandler");
  check(MPI_Comm_rank(comm_, &rank_), "MPI_Comm_rank");
  check(MPI_Comm_size(comm_, &size_), "MPI_Comm_size");
}

Communicator Communicator::world() { return {own_duplicate(MPI_COMM_WORLD), "world"}; }

Communicator Communicator::duplicate(MPI_Comm comm) { return {own_duplicate(comm), "duplicate"}; }

Communicator Communicator::imagined(int rank, int size, const std::string& name) {
  FLANMOE_EXPECT(rank >= 0 && rank < size, "rank {} of {} imagined ranks", rank, size);
  Communicator result(MPI_COMM_NULL, name);
  result.rank_ = rank;
  result.size_ = size;
  result.imagined_ = true;
  return result;
}

bool Communicator::counted(CollectiveKind kind, std::uint64_t receivers, std::uint64_t bytes) const {
  if (size_ > 1) {
    CollectiveCount& count = traffic_[kind];
    count.calls += 1;
    count.messages += receivers;
    count.bytes += bytes;
  }
  return !imagined_;
}

Communicator::Communicator(Communicator&& other) noexcept
    : comm_(std::exchange(other.comm_, MPI_COMM_NULL)),
      rank_(std::exchange(other.rank_, 0)),
      size_(std::exchange(other.size_, 0)),
      name_(std::move(other.name_)),
      imagined_(other.imagined_),
      transport_(std::move(other.transport_)),
      traffic_(std::exchange(other.traffic_, {})) {}

Communicator& Communicator::operator=(Communicator&& other) noexcept {
  if (this == &other) return *this;
  release();
  comm_ = std::exchange(other.comm_, MPI_COMM_NULL);
  rank_ = std::exchange(other.rank_, 0);
  size_ = std::exchange(other.size_, 0);
  name_ = std::move(other.name_);
  imagined_ = other.imagined_;
  transport_ = std::move(other.transport_);
  traffic_ = std::exchange(other.traffic_, {});
  return *this;
}

Communicator::~Communicator() { release(); }

void Communicator::release() noexcept {
  transport_.reset();
  // Freeing is collective; while an exception ends this rank the others may never come.
  if (comm_ != MPI_COMM_NULL && std::uncaught_exceptions() == 0 && mpi_runs()) MPI_Comm_free(&comm_);
  comm_ = MPI_COMM_NULL;
  size_ = 0;
}

void Communicator::check(int code, const char* call) const {
  if (code != MPI_SUCCESS) {
    fail("{} on communicator {}, rank {} of {}: {}", call, name_, rank_, size_, mpi_message(code));
  }
}

Communicator Communicator::split(int color, int key, const std::string& name) const {
  FLANMOE_EXPECT(!imagined_, "{} imagined ranks cannot be split", size_);
  const Collective scope("split", name_);
  MPI_Comm part = MPI_COMM_NULL;
  check(MPI_Comm_split(comm_, color, key, &part), "MPI_Comm_split");
  return {part, name};
}

void Communicator::barrier() const {
  if (imagined_) return;
  const Collective scope("barrier", name_);
  check(MPI_Barrier(comm_), "MPI_Barrier");
}

template <class T>
void Communicator::broadcast(std::span<T> data, int root) const {
  const Collective scope("broadcast", name_);
  const bool sends = rank_ == root;
  if (!counted(CollectiveKind::broadcast, sends ? others() : 0, sends ? data.size_bytes() : 0)) return;
  do {  // at least one call, data or not, so that an empty communicator is reported
    const auto part = data.first(std::min(data.size(), std::size_t(largest_count)));
    check(MPI_Bcast(part.data(), int(part.size()), mpi_type<T>(), root, comm_), "MPI_Bcast");
    data = data.subspan(part.size());
  } while (!data.empty());
}

std::string Communicator::broadcast(std::string text, int root) const {
  std::uint64_t size = text.size();
  broadcast(std::span(&size, 1), root);
  text.resize(size);
  broadcast(std::span(text.data(), text.size()), root);
  return text;
}

template <class T>
void Communicator::all_reduce(std::span<T> data, ReduceOp op) const {
  const Collective scope("all_reduce", name_);
  if (!counted(CollectiveKind::all_reduce, others(), data.size_bytes())) return;
  do {
    const auto part = data.first(std::min(data.size(), std::size_t(largest_count)));
    check(MPI_Allreduce(MPI_IN_PLACE, part.data(), int(part.size()), mpi_type<T>(), mpi_op(op), comm_),
          "MPI_Allreduce");
    data = data.subspan(part.size());
  } while (!data.empty());
}

template <class T>
T Communicator::all_reduce(T value, ReduceOp op) const {
  all_reduce(std::span<T>(&value, 1), op);
  return value;
}

template <class T>
std::vector<T> Communicator::all_gather(T value) const {
  std::vector<T> all(static_cast<std::size_t>(size_));
  all_gather(std::span<T>(all), std::span<const T>(&value, 1));
  return all;
}

template <class T>
void Communicator::all_gather(std::span<T> out, std::span<const T> in) const {
  const Collective scope("all_gather", name_);
  FLANMOE_EXPECT(out.size() == in.size() * std::size_t(size_), "room for {} elements, {} from each of {} ranks",
                 out.size(), in.size(), size_);
  if (!counted(CollectiveKind::all_gather, others(), in.size_bytes())) return;
  const int count = count_of(in.size(), "all_gather", name_);
  check(MPI_Allgather(in.data(), count, mpi_type<T>(), out.data(), count, mpi_type<T>(), comm_), "MPI_Allgather");
}

template <class T>
void Communicator::all_to_all(std::span<T> out, std::span<const T> in) const {
  const Collective scope("all_to_all", name_);
  FLANMOE_EXPECT(out.size() == in.size() && size_ > 0 && in.size() % std::size_t(size_) == 0,
                 "{} elements out, {} in, {} ranks", out.size(), in.size(), size_);
  if (!counted(CollectiveKind::all_to_all, others(), in.size_bytes() / std::size_t(size_) * others())) return;
  const int count = count_of(in.size() / std::size_t(size_), "all_to_all", name_);
  check(MPI_Alltoall(in.data(), count, mpi_type<T>(), out.data(), count, mpi_type<T>(), comm_), "MPI_Alltoall");
}

Communicators Communicators::make(const Communicator& world, const ProcessGrid& grid) {
  FLANMOE_EXPECT(grid.world_size() == world.size() && grid.world_rank() == world.rank(),
                 "a grid of rank {} of {} on rank {} of {}", grid.world_rank(), grid.world_size(), world.rank(),
                 world.size());
  return {world.split(0, world.rank(), "world"), world.split(grid.expert_rank(), grid.data_rank(), "data"),
          world.split(grid.data_rank(), grid.expert_rank(), "expert")};
}

Communicators Communicators::imagined(const ProcessGrid& grid) {
  return {Communicator::imagined(grid.world_rank(), grid.world_size(), "world"),
          Communicator::imagined(grid.data_rank(), grid.data_size(), "data"),
          Communicator::imagined(grid.expert_rank(), grid.expert_size(), "expert")};
}

Traffic Communicators::traffic() const {
  Traffic sum = world.traffic();
  sum += data.traffic();
  sum += expert.traffic();
  return sum;
}

template void Communicator::broadcast(std::span<char>, int) const;
template void Communicator::all_gather(std::span<char>, std::span<const char>) const;
template void Communicator::all_to_all(std::span<char>, std::span<const char>) const;
template std::vector<char> Communicator::all_gather(char) const;
template void Communicator::broadcast(std::span<std::uint8_t>, int) const;
template void Communicator::all_gather(std::span<std::uint8_t>, std::span<const std::uint8_t>) const;
template void Communicator::all_to_all(std::span<std::uint8_t>, std::span<const std::uint8_t>) const;
template std::vector<std::uint8_t> Communicator::all_gather(std::uint8_t) const;
template void Communicator::broadcast(std::span<bf16>, int) const;
template void Communicator::all_gather(std::span<bf16>, std::span<const bf16>) const;
template void Communicator::all_to_all(std::span<bf16>, std::span<const bf16>) const;
template std::vector<bf16> Communicator::all_gather(bf16) const;
template void Communicator::broadcast(std::span<std::int32_t>, int) const;
template void Communicator::all_gather(std::span<std::int32_t>, std::span<const std::int32_t>) const;
template void Communicator::all_to_all(std::span<std::int32_t>, std::span<const std::int32_t>) const;
template std::vector<std::int32_t> Communicator::all_gather(std::int32_t) const;
template void Communicator::all_reduce(std::span<std::int32_t>, ReduceOp) const;
template std::int32_t Communicator::all_reduce(std::int32_t, ReduceOp) const;
template void Communicator::broadcast(std::span<std::int64_t>, int) const;
template void Communicator::all_gather(std::span<std::int64_t>, std::span<const std::int64_t>) const;
template void Communicator::all_to_all(std::span<std::int64_t>, std::span<const std::int64_t>) const;
template std::vector<std::int64_t> Communicator::all_gather(std::int64_t) const;
template void Communicator::all_reduce(std::span<std::int64_t>, ReduceOp) const;
template std::int64_t Communicator::all_reduce(std::int64_t, ReduceOp) const;
template void Communicator::broadcast(std::span<std::uint64_t>, int) const;
template void Communicator::all_gather(std::span<std::uint64_t>, std::span<const std::uint64_t>) const;
template void Communicator::all_to_all(std::span<std::uint64_t>, std::span<const std::uint64_t>) const;
template std::vector<std::uint64_t> Communicator::all_gather(std::uint64_t) const;
template void Communicator::all_reduce(std::span<std::uint64_t>, ReduceOp) const;
template std::uint64_t Communicator::all_reduce(std::uint64_t, ReduceOp) const;
template void Communicator::broadcast(std::span<float>, int) const;
template void Communicator::all_gather(std::span<float>, std::span<const float>) const;
template void Communicator::all_to_all(std::span<float>, std::span<const float>) const;
template std::vector<float> Communicator::all_gather(float) const;
template void Communicator::all_reduce(std::span<float>, ReduceOp) const;
template float Communicator::all_reduce(float, ReduceOp) const;
template void Communicator::broadcast(std::span<double>, int) const;
template void Communicator::all_gather(std::span<double>, std::span<const double>) const;
template void Communicator::all_to_all(std::span<double>, std::span<const double>) const;
template std::vector<double> Communicator::all_gather(double) const;
template void Communicator::all_reduce(std::span<double>, ReduceOp) const;
template double Communicator::all_reduce(double, ReduceOp) const;

}  // namespace flanmoe
