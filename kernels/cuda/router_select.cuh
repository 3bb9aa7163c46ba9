// Ranks and selections of a block of kThreads threads, for the router: results are those of going through the items one
// after another.
#pragma once

#include "kernels/cuda/device.cuh"
#include "kernels/router.hpp"

namespace flanmoe::cuda {

/// Whole numbers in the order of floating-point ones; NaN is the largest.
__device__ inline std::uint32_t order_key(float x) {
  if (x != x) return 0xffffffffU;
  if (x == 0) x = 0;  // -0 is equal to 0
  const std::uint32_t bits = __float_as_uint(x);
  return (bits & 0x80000000U) != 0 ? ~bits : bits | 0x80000000U;
}

/// Shared memory of rank_in_order, from byte 0: `taken` first, the counters of the warps behind it.
inline std::size_t rank_shared_bytes(std::int64_t experts) {
  return std::size_t(experts) * (kThreads / kWarp + 1) * sizeof(std::int32_t);
}

inline void expect_counters(std::int64_t experts) {
  FLANMOE_EXPECT(rank_shared_bytes(experts) <= 160 * 1024, "{} experts are too many for the counters of a block",
                 experts);
}

/// row_map of RouterKernels, with counters for at most kMostParts parts of the copies.
constexpr std::int64_t kMostParts = 256;
void row_map(KernelContext& context, const Tensor& slot_Tk, const Tensor& token_N, const Tensor& count_E,
             const Tensor& choice_Tk, const Tensor& kept_Tk);

/// measure, balance_gradient and add_claims of RouterKernels.
void measure(KernelContext& context, const Tensor& measure_S, const Tensor& logits_TE, const Tensor& p_TE,
             const Tensor& log_z_T, const Tensor& kept_Tk, const Tensor& count_E, const Tensor& chosen_GE,
             const Tensor& balance_GE, std::span<const std::int64_t> first_token);
std::size_t measure_scratch();
void balance_gradient(KernelContext& context, const Tensor& dp_GE, const Tensor& balance_GE,
                      std::span<const std::int64_t> first_token, double weight, std::int64_t step_groups);
void add_claims(KernelContext& context, const Tensor& claims_E, const Tensor& chosen_GE);

/// The last group that begins at or before token t.
__device__ inline int group_of(const std::int64_t* first_token, int groups, std::int64_t t) {
  int group = 0;
  for (int step = 1 << 30; step > 0; step /= 2) {
    if (group + step < groups && first_token[group + step] <= t) group += step;
  }
  return group;
}

/// Gives every item 0 .. n-1 with expert(i) = e >= 0 its place among the items of e: f(i, e, taken[e] + items of e
/// before i). On return taken[e] has grown by the items of e. Each warp owns a stretch of neighbours: a histogram of
/// every stretch, an exclusive scan over stretches, then ranks inside of the stretch, 32 items at a time. f may change
/// what expert(i) reads of its own i. All threads of the block call it.
template <class Expert, class F>
__device__ inline void rank_in_order(std::int64_t n, int experts, std::int32_t* taken, Expert&& expert, F&& f) {
  constexpr int warps = kThreads / kWarp;
  std::int32_t* counters = taken + experts;  // warps x experts
  const int warp = int(threadIdx.x) / kWarp, lane = int(threadIdx.x) % kWarp;
  std::int32_t* own = counters + warp * experts;
  const std::int64_t stretch = (n + std::int64_t{kThreads} - 1) / kThreads * kWarp;
  const std::int64_t begin = std::min(n, warp * stretch), end = std::min(n, begin + stretch);
  for (int i = int(threadIdx.x); i < warps * experts; i += kThreads) counters[i] = 0;
  __syncthreads();
  for (std::int64_t i = begin + lane; i < end; i += kWarp) {
    const int e = expert(i);
    if (e >= 0) atomicAdd(&own[e], 1);
  }
  __syncthreads();
  for (int e = int(threadIdx.x); e < experts; e += kThreads) {
    std::int32_t before = taken[e];
    for (int w = 0; w < warps; ++w) {
      const std::int32_t items = counters[w * experts + e];
      counters[w * experts + e] = before;
      before += items;
    }
    taken[e] = before;
  }
  __syncthreads();
  for (std::int64_t base = begin; base < end; base += kWarp) {
    const std::int64_t i = base + lane;
    const int e = i < end ? expert(i) : -1;
    const unsigned same = __match_any_sync(kAllLanes, e);
    const unsigned before = same & ((1U << unsigned(lane)) - 1);
    const std::int32_t first = e >= 0 ? own[e] : 0;
    __syncwarp();
    if (e >= 0 && before == 0) own[e] = first + __popc(same);
    if (e >= 0) f(i, e, first + __popc(before));
    __syncwarp();
  }
  __syncthreads();
}

/// The smallest key that is taken, and how many of the items with exactly this key are.
struct Threshold {
  std::uint32_t key = 0;
  std::int64_t ties = 0;
};
constexpr std::size_t kSelectSharedBytes = (256 + 2 + kThreads / kWarp) * sizeof(std::int32_t);

/// The threshold of the `taken` > 0 largest of n keys, by four digits of eight bits: a histogram of the digit among the
/// items that agree in the digits before it. All threads of the block call it.
template <class Key>
__device__ inline Threshold largest_keys(std::int64_t n, std::int64_t taken, Key&& key) {
  auto* times = shared_memory<std::int32_t>();  // 256, then the digit that was found and what is left to take
  std::uint32_t found = 0, mask = 0;
  std::int32_t left = std::int32_t(taken);
  for (int shift = 24; shift >= 0; shift -= 8) {
    for (int i = int(threadIdx.x); i < 256; i += kThreads) times[i] = 0;
    __syncthreads();
    for (std::int64_t i = threadIdx.x; i < n; i += kThreads) {
      const std::uint32_t k = key(i);
      if ((k & mask) == found) atomicAdd(&times[(k >> unsigned(shift)) & 255U], 1);
    }
    __syncthreads();
    if (threadIdx.x == 0) {
      int digit = 255;
      for (; digit > 0 && times[digit] < left; --digit) left -= times[digit];
      times[256] = digit;
      times[257] = left;
    }
    __syncthreads();
    found |= std::uint32_t(times[256]) << unsigned(shift);
    left = times[257];
    mask |= 255U << unsigned(shift);
    __syncthreads();
  }
  return {found, left};
}

/// f(i, whether item i is taken) for all items: those above the threshold, and of those at it the first `ties`.
template <class Key, class F>
__device__ inline void keep_in_order(std::int64_t n, Threshold last, bool any, Key&& key, F&& f) {
  auto* of_warp = shared_memory<std::int32_t>(258 * sizeof(std::int32_t));
  const int warp = int(threadIdx.x) / kWarp, lane = int(threadIdx.x) % kWarp;
  std::int64_t earlier = 0;  // items at the threshold in what has passed
  for (std::int64_t base = 0; base < n; base += kThreads) {
    const std::int64_t i = base + threadIdx.x;
    const std::uint32_t k = i < n ? key(i) : 0;
    const bool tie = i < n && any && k == last.key;
    const unsigned ties = __ballot_sync(kAllLanes, tie);
    if (lane == 0) of_warp[warp] = __popc(ties);
    __syncthreads();
    std::int64_t before = earlier + __popc(ties & ((1U << unsigned(lane)) - 1));
    for (int w = 0; w < kThreads / kWarp; ++w) {
      if (w < warp) before += of_warp[w];
      earlier += of_warp[w];
    }
    __syncthreads();
    if (i < n) f(i, any && (k > last.key || (tie && before < last.ties)));
  }
}

}  // namespace flanmoe::cuda
