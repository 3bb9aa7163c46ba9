#include <nccl.h>

#include <algorithm>
#include <cstring>
#include <exception>
#include <numeric>

#include "kernels/cuda/device.cuh"
#include "parallel/device_communicator.hpp"
#include "parallel/halving.hpp"

namespace flanmoe {
namespace {

using cuda::kThreads;

constexpr int kLevels = 12;  // of the tree of ranks
/// Thread blocks of a collective at most, each with a multiprocessor of its own. A kernel of NCCL stays on its GPU
/// until those of the other ranks have come. Two communicators that are under way would wait for each other for ever if
/// one GPU had room for the kernel of this one only, and another for that of the other. Rows of experts and gradient
/// sums are two streams, so that two kernels are under way at most, and they fit on any GPU with 64 multiprocessors
/// (V100 80, A100 108, H100 132); kernels that compute do not wait for anybody and make room.
constexpr int kMostBlocks = 32;

/// out[i] = the sum of rows[r * stride + i] over ranks in the tree of tree.hpp: neighbours first, an odd one out moves
/// up. Level l holds the sum of 2^l ranks that waits for its neighbour. Added in fp32.
template <class T>
__global__ void __launch_bounds__(kThreads)
    add_in_tree(T* out, const T* rows, int ranks, std::int64_t stride, std::int64_t count) {
  const std::int64_t step = std::int64_t(gridDim.x) * kThreads;
  for (std::int64_t i = std::int64_t(blockIdx.x) * kThreads + threadIdx.x; i < count; i += step) {
    float waiting[kLevels] = {};
    for (int r = 0; r < ranks; ++r) {
      float x = cuda::load_as_float(rows[r * stride + i]);
      bool placed = false;
#pragma unroll
      for (int level = 0; level < kLevels; ++level) {
        if (placed) continue;
        if (((r >> level) & 1) != 0) {
          x = waiting[level] + x;
        } else {
          waiting[level] = x;
          placed = true;
        }
      }
    }
    float sum = 0;
    bool any = false;
#pragma unroll
    for (int level = 0; level < kLevels; ++level) {
      if (((ranks >> level) & 1) == 0) continue;
      sum = any ? waiting[level] + sum : waiting[level];
      any = true;
    }
    out[i] = cuda::round_to<T>(sum);
  }
}

__global__ void __launch_bounds__(kThreads) add_to(float* to, const float* from, std::int64_t count) {
  const std::int64_t step = std::int64_t(gridDim.x) * kThreads;
  for (std::int64_t i = std::int64_t(blockIdx.x) * kThreads + threadIdx.x; i < count; i += step) to[i] += from[i];
}

char* bytes_at(const Tensor& x, std::int64_t element) {
  return static_cast<char*>(x.data) + element * std::int64_t(size_of(x.dtype));
}
std::size_t bytes_of(const Tensor& x, std::int64_t elements) { return std::size_t(elements) * size_of(x.dtype); }

void expect_counts(const Tensor& x, std::span<const std::int64_t> counts, int size, std::int64_t room,
                   const char* what) {
  const std::int64_t total = std::accumulate(counts.begin(), counts.end(), std::int64_t{0});
  FLANMOE_EXPECT(x.contiguous() && std::int64_t(counts.size()) == size && total <= room,
                 "{}: {} counts for {} ranks, {} in all, room for {}", what, counts.size(), size, total, room);
}

}  // namespace

DeviceCommunicator::DeviceCommunicator(const Communicator& host, cudaStream_t compute, cudaStream_t communication)
    : name_(host.name()), rank_(host.rank()), size_(host.size()), compute_(compute), stream_(communication) {
  ncclUniqueId id{};
  if (rank_ == 0) check(ncclGetUniqueId(&id), "ncclGetUniqueId");
  host.broadcast(std::span<char>(id.internal, sizeof id.internal), 0);
  ncclConfig_t config = NCCL_CONFIG_INITIALIZER;
  config.maxCTAs = kMostBlocks;
  check(ncclCommInitRankConfig(&comm_, size_, id, rank_, &config), "ncclCommInitRankConfig");
}

DeviceCommunicator::~DeviceCommunicator() {
  // Destroying is collective; while an exception ends this rank the others may never come.
  if (comm_ == nullptr) return;
  (void)(std::uncaught_exceptions() == 0 ? ncclCommDestroy(comm_) : ncclCommAbort(comm_));
}

void DeviceCommunicator::check(int code, const char* call) const {
  if (code != ncclSuccess) {
    fail("{} on communicator {}, rank {} of {}: {}", call, name_, rank_, size_, ncclGetErrorString(ncclResult_t(code)));
  }
}

/// Queues `collective` behind what is computed so far, with an event behind it.
template <class F>
DeviceCommunicator::Ticket DeviceCommunicator::start(const F& collective) const {
  computed_.record(compute_);
  computed_.hold(stream_);
  collective();
  if (free_.empty()) {
    free_.push_back(Ticket(done_.size()));
    done_.emplace_back();
  }
  const Ticket ticket = free_.back();
  done_[std::size_t(ticket)].record(stream_);
  free_.pop_back();
  return ticket;
}

void DeviceCommunicator::finish(Ticket ticket) const {
  done_[std::size_t(ticket)].hold(compute_);
  free_.push_back(
      ticket);  // a stream that waits for an event goes on waiting for that record when it is recorded again
}

DeviceCommunicator::Ticket DeviceCommunicator::start_all_to_all_rows(const Tensor& receive,
                                                                     std::span<const RowRange> receive_rows,
                                                                     const Tensor& send,
                                                                     std::span<const RowRange> send_rows) const {
  for (const auto& rows : {receive_rows, send_rows}) {
    FLANMOE_EXPECT(std::int64_t(rows.size()) == size_, "rows of {} ranks, there are {}", rows.size(), size_);
  }
  return start([&] { exchange_rows(receive, receive_rows, send, send_rows); });
}

void DeviceCommunicator::exchange_rows(const Tensor& receive, std::span<const RowRange> receive_rows,
                                       const Tensor& send, std::span<const RowRange> send_rows) const {
  check(ncclGroupStart(), "ncclGroupStart");
  for (int r = 0; r < size_; ++r) {
    const RowRange &out = send_rows[std::size_t(r)], &in = receive_rows[std::size_t(r)];
    const std::size_t out_bytes = bytes_of(send, out.count * send.cols),
                      in_bytes = bytes_of(send, in.count * send.cols);
    if (out_bytes > 0) {
      check(ncclSend(bytes_at(send, out.first * send.cols), out_bytes, ncclUint8, r, comm_, stream_), "ncclSend");
    }
    if (in_bytes > 0) {
      check(ncclRecv(bytes_at(receive, in.first * send.cols), in_bytes, ncclUint8, r, comm_, stream_), "ncclRecv");
    }
  }
  check(ncclGroupEnd(), "ncclGroupEnd");
}

DeviceCommunicator::Ticket DeviceCommunicator::start_reduce_scatter_tree(const Tensor& flat,
                                                                         std::span<const std::int64_t> segment_sizes,
                                                                         const Tensor& work) const {
  expect_counts(flat, segment_sizes, size_, flat.size(), "segments");
  const std::int64_t needed = Communicator::reduce_scatter_work(segment_sizes, flat.dtype);
  FLANMOE_EXPECT(work.dtype == flat.dtype && work.contiguous() && work.size() >= needed,
                 "work of {} elements, {} needed", work.size(), needed);
  return start([&] {
    if (size_ == 1) return;
    const detail::ReducePlan plan(segment_sizes, flat.dtype);
    if (plan.halves) {
      reduce_by_halving(flat, segment_sizes, work, plan.piece);
    } else {
      reduce_in_pieces(flat, segment_sizes, work, plan.piece);
    }
  });
}

void DeviceCommunicator::reduce_by_halving(const Tensor& flat, std::span<const std::int64_t> sizes, const Tensor& work,
                                           std::int64_t piece) const {
  FLANMOE_EXPECT(flat.dtype == DType::f32, "halving of {}", name_of(flat.dtype));
  for (int distance = 1; distance < size_; distance *= 2) {
    detail::HalvingRound round(sizes, rank_, distance);
    while (round.give.left() > 0 || round.keep.left() > 0) {
      const std::int64_t out = std::min(piece, round.give.left()), in = std::min(piece, round.keep.left());
      check(ncclGroupStart(), "ncclGroupStart");
      round.give.take(out, [&](std::int64_t first, std::int64_t n) {
        check(ncclSend(bytes_at(flat, first), bytes_of(flat, n), ncclUint8, round.partner, comm_, stream_), "ncclSend");
      });
      // The partner gives the same parts in the same order.
      detail::SegmentStream arriving = round.keep;
      std::int64_t at = 0;
      arriving.take(in, [&](std::int64_t /*first*/, std::int64_t n) {
        check(ncclRecv(bytes_at(work, at), bytes_of(work, n), ncclUint8, round.partner, comm_, stream_), "ncclRecv");
        at += n;
      });
      check(ncclGroupEnd(), "ncclGroupEnd");
      const float* from = work.as<float>();
      round.keep.take(in, [&](std::int64_t first, std::int64_t n) {
        cuda::launch(add_to, cuda::striding_blocks(n, kThreads), kThreads, 0, stream_, flat.as<float>() + first, from,
                     n);
        from += n;
      });
    }
  }
}

void DeviceCommunicator::reduce_in_pieces(const Tensor& flat, std::span<const std::int64_t> sizes, const Tensor& work,
                                          std::int64_t piece) const {
  FLANMOE_EXPECT(size_ < (1 << kLevels), "{} ranks in a tree of {} levels", size_, kLevels);
  const std::int64_t own = sizes[std::size_t(rank_)], longest = *std::max_element(sizes.begin(), sizes.end());
  for (std::int64_t at = 0; at < longest; at += piece) {
    const std::int64_t in = std::clamp(own - at, std::int64_t{0}, piece);
    std::int64_t first = 0, own_at = 0;
    check(ncclGroupStart(), "ncclGroupStart");
    for (int r = 0; r < size_; ++r) {
      const std::int64_t count = std::clamp(sizes[std::size_t(r)] - at, std::int64_t{0}, piece);
      if (r == rank_) own_at = first + at;
      if (count > 0) {
        check(ncclSend(bytes_at(flat, first + at), bytes_of(flat, count), ncclUint8, r, comm_, stream_), "ncclSend");
      }
      if (in > 0) {
        check(ncclRecv(bytes_at(work, r * in), bytes_of(work, in), ncclUint8, r, comm_, stream_), "ncclRecv");
      }
      first += sizes[std::size_t(r)];
    }
    check(ncclGroupEnd(), "ncclGroupEnd");
    if (in == 0) continue;
    with_type<float, bf16>(flat, "flat", [&]<class T>(std::type_identity<T>) {
      cuda::launch(add_in_tree<T>, cuda::striding_blocks(in, kThreads), kThreads, 0, stream_, flat.as<T>() + own_at,
                   work.as<T>(), size_, in, in);
    });
  }
}

DeviceCommunicator::Ticket DeviceCommunicator::start_all_gather_segments(
    const Tensor& flat, std::span<const std::int64_t> segment_sizes) const {
  expect_counts(flat, segment_sizes, size_, flat.size(), "segments");
  return start([&] { gather_segments(flat, segment_sizes); });
}

void DeviceCommunicator::gather_segments(const Tensor& flat, std::span<const std::int64_t> segment_sizes) const {
  std::int64_t at = 0;
  check(ncclGroupStart(), "ncclGroupStart");
  for (int r = 0; r < size_; ++r) {
    const std::int64_t count = segment_sizes[std::size_t(r)];
    char* segment = bytes_at(flat, at);
    if (count > 0) {
      check(ncclBroadcast(segment, segment, bytes_of(flat, count), ncclUint8, r, comm_, stream_), "ncclBroadcast");
    }
    at += count;
  }
  check(ncclGroupEnd(), "ncclGroupEnd");
}

DeviceCommunicator::Ticket DeviceCommunicator::start_all_reduce(const Tensor& x, ReduceOp op) const {
  FLANMOE_EXPECT(x.contiguous() && x.dtype != DType::bf16, "an all_reduce of {} with stride {}", name_of(x.dtype),
                 x.stride);
  const ncclDataType_t type = x.dtype == DType::i32 ? ncclInt32 : x.dtype == DType::f32 ? ncclFloat32 : ncclFloat64;
  const ncclRedOp_t how = op == ReduceOp::sum ? ncclSum : op == ReduceOp::min ? ncclMin : ncclMax;
  return start(
      [&] { check(ncclAllReduce(x.data, x.data, std::size_t(x.size()), type, how, comm_, stream_), "ncclAllReduce"); });
}

}  // namespace flanmoe
