// Rows for the experts: the copies are cut into parts; a histogram of each part, a scan over experts and parts, and
// ranks inside of a part give every copy its row in expert order. Rows without room are left out: the host sees them in
// count_E.
#include <algorithm>

#include "kernels/cuda/elements.cuh"
#include "kernels/cuda/router_select.cuh"
#include "kernels/router_checks.hpp"

namespace flanmoe::cuda {
namespace {

constexpr std::int64_t kLeastPart = 1024;  // copies

struct RowMap {
  Elements<std::int32_t> slot;
  std::int32_t *token, *count_E;
  std::int64_t token_stride, most_rows;
  Elements<const std::int32_t> choice, kept;
  std::int32_t *part_counts, *rows;  // parts x E; one number
  std::int64_t copies, part;         // copies of a part
  int parts, E, k;
  // Copies are counted in 32 bits, as their rows are: divisions are short.
  __device__ std::int64_t token_of(std::int64_t i) const { return std::uint32_t(i) / std::uint32_t(k); }
  __device__ std::int64_t column_of(std::int64_t i) const { return std::uint32_t(i) % std::uint32_t(k); }
  __device__ int expert(std::int64_t i) const {
    return *kept.at(token_of(i), column_of(i)) != 0 ? *choice.at(token_of(i), column_of(i)) : -1;
  }
};

/// Kept copies of every expert in every part.
__global__ void __launch_bounds__(kThreads) count_parts(RowMap o) {
  auto* times = shared_memory<std::int32_t>();
  for (int e = int(threadIdx.x); e < o.E; e += kThreads) times[e] = 0;
  __syncthreads();
  const std::int64_t begin = blockIdx.x * o.part, end = std::min(begin + o.part, o.copies);
  for (std::int64_t i = begin + threadIdx.x; i < end; i += kThreads) {
    const int e = o.expert(i);
    if (e >= 0) atomicAdd(&times[e], 1);
  }
  __syncthreads();
  for (int e = int(threadIdx.x); e < o.E; e += kThreads) o.part_counts[std::int64_t(blockIdx.x) * o.E + e] = times[e];
}

/// One block: counts become the first row of every (expert, part).
__global__ void __launch_bounds__(kThreads) scan_parts(RowMap o) {
  auto* total = shared_memory<std::int32_t>();
  for (int e = int(threadIdx.x); e < o.E; e += kThreads) {
    std::int32_t sum = 0;
    for (int part = 0; part < o.parts; ++part) sum += o.part_counts[std::int64_t(part) * o.E + e];
    total[e] = sum;
    o.count_E[e] = sum;
  }
  __syncthreads();
  if (threadIdx.x == 0) {
    std::int32_t row = 0;
    for (int e = 0; e < o.E; ++e) {
      const std::int32_t rows = total[e];
      total[e] = row;
      row += rows;
    }
    *o.rows = row;
  }
  __syncthreads();
  for (int e = int(threadIdx.x); e < o.E; e += kThreads) {
    std::int32_t row = total[e];
    for (int part = 0; part < o.parts; ++part) {
      std::int32_t& at = o.part_counts[std::int64_t(part) * o.E + e];
      const std::int32_t rows = at;
      at = row;
      row += rows;
    }
  }
}

__global__ void __launch_bounds__(kThreads) fill_rows(RowMap o) {
  auto* row = shared_memory<std::int32_t>();
  for (int e = int(threadIdx.x); e < o.E; e += kThreads) row[e] = o.part_counts[std::int64_t(blockIdx.x) * o.E + e];
  __syncthreads();
  const std::int64_t begin = blockIdx.x * o.part, end = std::min(begin + o.part, o.copies);
  for (std::int64_t i = begin + threadIdx.x; i < end; i += kThreads) {
    if (o.expert(i) < 0) *o.slot.at(o.token_of(i), o.column_of(i)) = -1;
  }
  rank_in_order(
      end - begin, o.E, row, [&](std::int64_t i) { return o.expert(begin + i); },
      [&](std::int64_t i, int /*expert*/, std::int32_t at) {
        *o.slot.at(o.token_of(begin + i), o.column_of(begin + i)) = at;
        if (at < o.most_rows) o.token[at * o.token_stride] = std::int32_t(o.token_of(begin + i));
      });
}

/// Entries of token_N past the last row.
__global__ void __launch_bounds__(kThreads) clear_rest(RowMap o) {
  const std::int64_t step = std::int64_t(gridDim.x) * kThreads;
  for (std::int64_t n = std::int64_t(blockIdx.x) * kThreads + threadIdx.x; n < o.most_rows; n += step) {
    if (n >= *o.rows) o.token[n * o.token_stride] = -1;
  }
}

}  // namespace

void row_map(KernelContext& context, const Tensor& slot_Tk, const Tensor& token_N, const Tensor& count_E,
             const Tensor& choice_Tk, const Tensor& kept_Tk) {
  expect_row_map(slot_Tk, token_N, count_E, choice_Tk, kept_Tk);
  const std::int64_t E = count_E.cols, copies = choice_Tk.size();
  expect_counters(E);
  FLANMOE_EXPECT(copies < (std::int64_t{1} << 31), "{} copies", copies);
  const std::int64_t part = std::max(kLeastPart, (copies + kMostParts - 1) / kMostParts);
  const unsigned parts = blocks_for(copies, part);
  DeviceScratch scratch(context);
  const RowMap o{elements<std::int32_t>(slot_Tk),
                 token_N.as<std::int32_t>(),
                 count_E.as<std::int32_t>(),
                 token_N.stride,
                 token_N.rows,
                 elements<const std::int32_t>(choice_Tk),
                 elements<const std::int32_t>(kept_Tk),
                 scratch.take<std::int32_t>(kMostParts * E),
                 scratch.take<std::int32_t>(1),
                 copies,
                 part,
                 int(parts),
                 int(E),
                 int(choice_Tk.cols)};
  const std::size_t counters = std::size_t(E) * sizeof(std::int32_t);
  launch(count_parts, parts, kThreads, counters, context, o);
  launch(scan_parts, 1, kThreads, counters, context, o);
  launch(fill_rows, parts, kThreads, rank_shared_bytes(E), context, o);
  launch(clear_rest, striding_blocks(token_N.rows, kThreads), kThreads, 0, context, o);
}

}  // namespace flanmoe::cuda
