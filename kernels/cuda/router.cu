// Routing. Rows of experts are read by warps; slots are given by histogram, exclusive scan and rank, so that the order
// of claims is that of the declaration whatever order threads run in. Atomics count whole numbers only.
#include <algorithm>

#include "kernels/cuda/elements.cuh"
#include "kernels/cuda/philox.cuh"
#include "kernels/cuda/router_select.cuh"
#include "kernels/router.hpp"
#include "kernels/router_checks.hpp"

namespace flanmoe::cuda {
namespace {

constexpr int kWarps = kThreads / kWarp;

/// Calls f(t) in every lane of the warp that owns token t.
template <class F>
__device__ inline void over_tokens(std::int64_t tokens, F&& f) {
  const std::int64_t step = std::int64_t(gridDim.x) * kWarps;
  for (std::int64_t t = std::int64_t(blockIdx.x) * kWarps + int(threadIdx.x) / kWarp; t < tokens; t += step) f(t);
}
unsigned token_blocks(std::int64_t tokens) { return striding_blocks(tokens, kWarps); }
__device__ inline int lane_index() { return int(threadIdx.x) % kWarp; }

// ---- jitter -------------------------------------------------------------------------------------------------------

template <class C>
struct JitterRows {
  Elements<float> y;
  Elements<const C> x;
  const std::int64_t* row_T;
  const std::int32_t* position_T;
  PhiloxKey key;
  double size;
  std::int64_t cols;
  /// Four columns: the words of one Philox block.
  __device__ void operator()(std::int64_t t, std::int64_t block) const {
    std::uint32_t word[4];
    philox_block(word, key, std::uint64_t(row_T[t]), std::uint32_t(position_T[t]), std::uint32_t(block));
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const std::int64_t c = block * 4 + i;
      if (c >= cols) return;
      const double factor = 1 - size + 2 * size * (double(word[i]) * 0x1p-32);
      *y.at(t, c) = float(factor) * load_as_float(*x.at(t, c));
    }
  }
};

void jitter(KernelContext& context, const Tensor& y_TD, const Tensor& x_TD, const Jitter& jitter) {
  expect_jitter(y_TD, x_TD, jitter);
  if (x_TD.size() == 0) return;
  const auto* row_T = upload(context, jitter.row_T);
  const auto* position_T = upload(context, jitter.position_T);
  with_type<float, bf16>(x_TD, "x", [&]<class C>(std::type_identity<C>) {
    const JitterRows<C> f{elements<float>(y_TD),
                          elements<const C>(x_TD),
                          row_T,
                          position_T,
                          PhiloxKey(jitter.key),
                          jitter.size,
                          x_TD.cols};
    const std::int64_t per_row = (x_TD.cols + 3) / 4, pieces = x_TD.rows * per_row;
    launch(over_pieces<std::int64_t, JitterRows<C>>, striding_blocks(pieces, kThreads), kThreads, 0, context, f, pieces,
           per_row);
  });
}

// ---- probabilities and choices ------------------------------------------------------------------------------------

__global__ void __launch_bounds__(kThreads)
    softmax_kernel(Elements<float> p, Elements<float> log_z, Elements<const float> logits, std::int64_t tokens, int E) {
  over_tokens(tokens, [&](std::int64_t t) {
    const float* logit = logits.at(t, 0);
    float largest = logit[0];
    for (int e = lane_index(); e < E; e += kWarp) largest = fmaxf(largest, logit[e]);
    largest = warp_reduce(largest, Largest{});
    float sum = 0;
    for (int e = lane_index(); e < E; e += kWarp) sum += expf(logit[e] - largest);
    sum = warp_reduce(sum);
    for (int e = lane_index(); e < E; e += kWarp) *p.at(t, e) = expf(logit[e] - largest) / sum;
    if (lane_index() == 0) *log_z.at(t, 0) = largest + logf(sum);
  });
}

void softmax(KernelContext& context, const Tensor& p_TE, const Tensor& log_z_T, const Tensor& logits_TE) {
  expect_softmax(p_TE, log_z_T, logits_TE);
  launch(softmax_kernel, token_blocks(p_TE.rows), kThreads, 0, context, elements<float>(p_TE), elements<float>(log_z_T),
         elements<const float>(logits_TE), p_TE.rows, int(p_TE.cols));
}

/// Round j takes the best of those behind choice j - 1: the order (score descending, expert ascending) has no equals,
/// so that choices are distinct. NaN counts as the least.
__global__ void __launch_bounds__(kThreads) top_k_kernel(Elements<std::int32_t> choice, Elements<const float> p,
                                                         const float* bias, std::int64_t tokens, int E, int k) {
  over_tokens(tokens, [&](std::int64_t t) {
    std::uint32_t last_key = 0xffffffffU;
    int last = -1;
    for (int j = 0; j < k; ++j) {
      std::uint32_t best_key = 0;
      int best = E;
      for (int e = lane_index(); e < E; e += kWarp) {
        const float score = *p.at(t, e) + (bias == nullptr ? 0.0F : bias[e]);
        const std::uint32_t key = std::isnan(score) ? 0 : order_key(score);
        const bool behind = key < last_key || (key == last_key && e > last);
        if (behind && (best == E || key > best_key)) {
          best_key = key;
          best = e;
        }
      }
#pragma unroll
      for (int bits = kWarp / 2; bits > 0; bits /= 2) {
        const std::uint32_t other_key = __shfl_xor_sync(kAllLanes, best_key, bits);
        const int other = __shfl_xor_sync(kAllLanes, best, bits);
        if (other < E && (best == E || other_key > best_key || (other_key == best_key && other < best))) {
          best_key = other_key;
          best = other;
        }
      }
      last_key = best_key;
      last = best;
      if (lane_index() == 0) *choice.at(t, j) = best;
    }
  });
}

void top_k(KernelContext& context, const Tensor& choice_Tk, const Tensor& p_TE, const Tensor& bias_E) {
  expect_top_k(choice_Tk, p_TE, bias_E);
  launch(top_k_kernel, token_blocks(p_TE.rows), kThreads, 0, context, elements<std::int32_t>(choice_Tk),
         elements<const float>(p_TE), bias_E.as<float>(), p_TE.rows, int(p_TE.cols), int(choice_Tk.cols));
}

struct Spread {
  Elements<std::int32_t> choice;
  const std::int64_t* row_T;
  const std::int32_t* position_T;
  std::int64_t k, experts;
  __device__ void operator()(std::int64_t t, std::int64_t j) const {
    *choice.at(t, j) = std::int32_t((row_T[t] + position_T[t] * k + j) % experts);
  }
};

void spread(KernelContext& context, const Tensor& choice_Tk, std::int64_t experts, std::span<const std::int64_t> row_T,
            std::span<const std::int32_t> position_T) {
  expect_spread(choice_Tk, experts, row_T, position_T);
  const std::int64_t k = choice_Tk.cols, all = choice_Tk.size();
  if (all == 0) return;
  const Spread f{elements<std::int32_t>(choice_Tk), upload(context, row_T), upload(context, position_T), k, experts};
  launch(over_pieces<std::int64_t, Spread>, striding_blocks(all, kThreads), kThreads, 0, context, f, all, k);
}

/// One thread a choice; the sum of the chosen ones is short.
struct Weigh {
  Elements<float> weight;
  Elements<const float> p;
  Elements<const std::int32_t> choice;
  int k;
  bool renormalize;
  __device__ void operator()(std::int64_t t, std::int64_t j) const {
    float own = *p.at(t, *choice.at(t, j));
    if (renormalize) {
      float chosen = 0;
#pragma unroll 1
      for (int i = 0; i < k; ++i) chosen += *p.at(t, *choice.at(t, i));
      own = chosen < kLeastChosen ? 1.0F / float(k) : own / chosen;
    }
    *weight.at(t, j) = own;
  }
};

void weigh(KernelContext& context, const Tensor& weight_Tk, const Tensor& p_TE, const Tensor& choice_Tk,
           bool renormalize) {
  expect_weigh(weight_Tk, p_TE, choice_Tk);
  const std::int64_t k = choice_Tk.cols, all = choice_Tk.size();
  if (all == 0) return;
  const Weigh f{elements<float>(weight_Tk), elements<const float>(p_TE), elements<const std::int32_t>(choice_Tk),
                int(k), renormalize};
  launch(over_pieces<std::int64_t, Weigh>, striding_blocks(all, kThreads), kThreads, 0, context, f, all, k);
}

struct Admit {
  Elements<std::int32_t> kept;
  Elements<const float> weight;
  const std::int64_t* row_T;
  const std::int32_t* position_T;
  PhiloxKey key;
  SecondPolicy policy;
  double threshold;
  __device__ void operator()(std::int64_t t, std::int64_t j) const {
    bool admitted = j == 0 || policy == SecondPolicy::all;
    if (!admitted && policy != SecondPolicy::none) {
      const double w = double(*weight.at(t, j));
      if (policy == SecondPolicy::threshold) {
        admitted = w > threshold;
      } else {
        std::uint32_t words[4];
        philox_block(words, key, std::uint64_t(row_T[t]), std::uint32_t(position_T[t]), std::uint32_t(j / 4));
        const std::uint32_t word = j % 4 == 0 ? words[0] : j % 4 == 1 ? words[1] : j % 4 == 2 ? words[2] : words[3];
        admitted = double(word) * 0x1p-32 < w / threshold;
      }
    }
    *kept.at(t, j) = admitted ? 1 : 0;
  }
};

void admit(KernelContext& context, const Tensor& kept_Tk, const Tensor& weight_Tk, const SecondChoices& second) {
  expect_admit(kept_Tk, weight_Tk, second);
  const std::int64_t k = kept_Tk.cols, all = kept_Tk.size();
  if (all == 0) return;
  const bool random = second.policy == SecondPolicy::random;
  const Admit f{elements<std::int32_t>(kept_Tk),
                elements<const float>(weight_Tk),
                random ? upload(context, second.row_T) : nullptr,
                random ? upload(context, second.position_T) : nullptr,
                PhiloxKey(second.key),
                second.policy,
                second.threshold};
  launch(over_pieces<std::int64_t, Admit>, striding_blocks(all, kThreads), kThreads, 0, context, f, all, k);
}

// ---- slots ----------------------------------------------------------------------------------------------------------

/// One block a group.
__global__ void __launch_bounds__(kThreads)
    count_kernel(Elements<std::int32_t> count, Elements<const std::int32_t> choice, int columns,
                 const std::int64_t* first_token, int E) {
  auto* times = shared_memory<std::int32_t>();
  for (int e = int(threadIdx.x); e < E; e += kThreads) times[e] = 0;
  __syncthreads();
  const std::int64_t first = first_token[blockIdx.x], n = (first_token[blockIdx.x + 1] - first) * columns;
  for (std::int64_t i = threadIdx.x; i < n; i += kThreads) {
    atomicAdd(&times[*choice.at(first + i / columns, i % columns)], 1);
  }
  __syncthreads();
  for (int e = int(threadIdx.x); e < E; e += kThreads) *count.at(blockIdx.x, e) = times[e];
}

void count(KernelContext& context, const Tensor& count_GE, const Tensor& choice_Tk, std::int64_t columns,
           std::span<const std::int64_t> first_token) {
  expect_count(count_GE, choice_Tk, columns, first_token);
  launch(count_kernel, unsigned(count_GE.rows), kThreads, std::size_t(count_GE.cols) * sizeof(std::int32_t), context,
         elements<std::int32_t>(count_GE), elements<const std::int32_t>(choice_Tk), int(columns),
         upload(context, first_token), int(count_GE.cols));
}

/// order[first + rank] = token, the rank of a token among its group's by descending probability of the first choice,
/// ties in token order: every thread counts the tokens before its own. One row of blocks a group.
__global__ void __launch_bounds__(kThreads)
    sort_tokens(std::int32_t* order, Elements<const float> p, Elements<const std::int32_t> choice,
                const std::int64_t* first_token) {
  auto* keys = shared_memory<std::uint32_t>();
  const std::int64_t first = first_token[blockIdx.y], tokens = first_token[blockIdx.y + 1] - first;
  const auto key_of = [&](std::int64_t i) { return order_key(*p.at(first + i, *choice.at(first + i, 0))); };
  for (std::int64_t begin = std::int64_t(blockIdx.x) * kThreads; begin < tokens;
       begin += std::int64_t(gridDim.x) * kThreads) {
    const std::int64_t own = begin + threadIdx.x;
    const std::uint32_t own_key = own < tokens ? key_of(own) : 0;
    std::int64_t rank = 0;
    for (std::int64_t other = 0; other < tokens; other += kThreads) {
      __syncthreads();
      if (other + threadIdx.x < tokens) keys[threadIdx.x] = key_of(other + threadIdx.x);
      __syncthreads();
      const int n = int(std::min<std::int64_t>(kThreads, tokens - other));
      for (int i = 0; i < n; ++i) rank += keys[i] > own_key || (keys[i] == own_key && other + i < own) ? 1 : 0;
    }
    if (own < tokens) order[first + rank] = std::int32_t(first + own);
  }
}

struct Assign {
  Elements<std::int32_t> kept, chosen;
  Elements<const std::int32_t> choice;
  const std::int32_t* order;  // null: token order
  const std::int64_t *first_token, *capacity;
  int E, k;
};

/// One block a group: column after column of its choices.
__global__ void __launch_bounds__(kThreads) assign_kernel(Assign o) {
  auto* claims = shared_memory<std::int32_t>();  // so far, by expert; behind it the counters of the warps
  const std::int64_t first = o.first_token[blockIdx.x], tokens = o.first_token[blockIdx.x + 1] - first;
  const std::int64_t capacity = o.capacity[blockIdx.x];
  for (int e = int(threadIdx.x); e < o.E; e += kThreads) claims[e] = 0;
  __syncthreads();
  for (int j = 0; j < o.k; ++j) {
    const auto token = [&](std::int64_t i) { return o.order == nullptr ? first + i : o.order[first + i]; };
    const auto expert = [&](std::int64_t i) { return *o.kept.at(token(i), j) != 0 ? *o.choice.at(token(i), j) : -1; };
    rank_in_order(tokens, o.E, claims, expert, [&](std::int64_t i, int /*expert*/, std::int32_t earlier) {
      *o.kept.at(token(i), j) = earlier < capacity ? 1 : 0;
    });
  }
  for (int e = int(threadIdx.x); e < o.E; e += kThreads) *o.chosen.at(blockIdx.x, e) = claims[e];
}

void assign(KernelContext& context, const Tensor& kept_Tk, const Tensor& chosen_GE, const Tensor& choice_Tk,
            const Tensor& p_TE, std::span<const std::int64_t> first_token, std::span<const std::int64_t> capacity,
            SlotPriority priority) {
  expect_assign(kept_Tk, chosen_GE, choice_Tk, p_TE, first_token, capacity);
  expect_counters(chosen_GE.cols);
  DeviceScratch scratch(context);
  const auto* first = upload(context, first_token);
  std::int32_t* order = nullptr;
  const unsigned groups = unsigned(chosen_GE.rows);
  if (priority == SlotPriority::probability && kept_Tk.rows > 0) {
    order = scratch.take<std::int32_t>(kept_Tk.rows);
    std::int64_t longest = 0;
    for (std::size_t g = 0; g < groups; ++g) longest = std::max(longest, first_token[g + 1] - first_token[g]);
    launch(sort_tokens, dim3(striding_blocks(longest, kThreads), groups), kThreads, kThreads * sizeof(std::uint32_t),
           context, order, elements<const float>(p_TE), elements<const std::int32_t>(choice_Tk), first);
  }
  const Assign o{elements<std::int32_t>(kept_Tk),
                 elements<std::int32_t>(chosen_GE),
                 elements<const std::int32_t>(choice_Tk),
                 order,
                 first,
                 upload(context, capacity),
                 int(chosen_GE.cols),
                 int(kept_Tk.cols)};
  launch(assign_kernel, groups, kThreads, rank_shared_bytes(chosen_GE.cols), context, o);
}

/// One block a group and expert: the probability of the last token that gets in is found digit by digit.
__global__ void __launch_bounds__(kThreads)
    expert_choice_kernel(Elements<std::int32_t> kept, Elements<std::int32_t> chosen, Elements<std::int32_t> choice,
                         Elements<const float> p, const std::int64_t* first_token, const std::int64_t* capacity) {
  const int e = int(blockIdx.x);
  const std::int64_t first = first_token[blockIdx.y], tokens = first_token[blockIdx.y + 1] - first;
  const std::int64_t taken = std::min(capacity[blockIdx.y], tokens);
  const auto key = [&](std::int64_t i) { return order_key(*p.at(first + i, e)); };
  const Threshold last = taken > 0 ? largest_keys(tokens, taken, key) : Threshold{};
  keep_in_order(tokens, last, taken > 0, key, [&](std::int64_t i, bool kept_now) {
    *kept.at(first + i, e) = kept_now ? 1 : 0;
    *choice.at(first + i, e) = e;
  });
  if (threadIdx.x == 0) *chosen.at(blockIdx.y, e) = std::int32_t(taken);
}

void expert_choice(KernelContext& context, const Tensor& kept_TE, const Tensor& chosen_GE, const Tensor& choice_TE,
                   const Tensor& p_TE, std::span<const std::int64_t> first_token,
                   std::span<const std::int64_t> capacity) {
  expect_expert_choice(kept_TE, chosen_GE, choice_TE, p_TE, first_token, capacity);
  launch(expert_choice_kernel, dim3(unsigned(p_TE.cols), unsigned(chosen_GE.rows)), kThreads, kSelectSharedBytes,
         context, elements<std::int32_t>(kept_TE), elements<std::int32_t>(chosen_GE), elements<std::int32_t>(choice_TE),
         elements<const float>(p_TE), upload(context, first_token), upload(context, capacity));
}

// ---- the gradient -------------------------------------------------------------------------------------------------

struct Backward {
  Elements<float> dlogits;
  Elements<const float> dweight, dp, p, log_z;
  Elements<const std::int32_t> choice;
  const std::int64_t* first_token;
  std::int64_t tokens;
  int groups, E, k;
  bool renormalize;
  float z_scale;
};

__global__ void __launch_bounds__(kThreads) backward_kernel(Backward o) {
  over_tokens(o.tokens, [&](std::int64_t t) {
    const int group = group_of(o.first_token, o.groups, t);
    float* dp = o.dlogits.at(t, 0);
    const float* p = o.p.at(t, 0);
    for (int e = lane_index(); e < o.E; e += kWarp) dp[e] = *o.dp.at(group, e);
    // weight_j = p_j / s with s = sum of the chosen p: dp_j = (dweight_j - sum_i dweight_i weight_i) / s.
    float s = 0, shared = 0;
    if (o.renormalize) {
      for (int j = lane_index(); j < o.k; j += kWarp) {
        const float chosen = p[*o.choice.at(t, j)];
        s += chosen;
        shared += *o.dweight.at(t, j) * chosen;
      }
      s = warp_reduce(s);
      shared = warp_reduce(shared) / s;
    } else {
      s = 1;
    }
    __syncwarp();
    if (!(o.renormalize && s < kLeastChosen)) {
      for (int j = lane_index(); j < o.k; j += kWarp) dp[*o.choice.at(t, j)] += (*o.dweight.at(t, j) - shared) / s;
    }
    __syncwarp();
    float mean = 0;
    for (int e = lane_index(); e < o.E; e += kWarp) mean += p[e] * dp[e];
    mean = warp_reduce(mean);
    const float z = o.z_scale * *o.log_z.at(t, 0);
    for (int e = lane_index(); e < o.E; e += kWarp) dp[e] = p[e] * (dp[e] - mean + z);
  });
}

void backward(KernelContext& context, const Tensor& dlogits_TE, const Tensor& dweight_Tk, const Tensor& dp_GE,
              double z_scale, const Tensor& p_TE, const Tensor& log_z_T, const Tensor& choice_Tk,
              std::span<const std::int64_t> first_token, bool renormalize) {
  expect_backward(dlogits_TE, dweight_Tk, dp_GE, p_TE, log_z_T, choice_Tk, first_token);
  if (p_TE.rows == 0) return;
  const Backward o{elements<float>(dlogits_TE),
                   elements<const float>(dweight_Tk),
                   elements<const float>(dp_GE),
                   elements<const float>(p_TE),
                   elements<const float>(log_z_T),
                   elements<const std::int32_t>(choice_Tk),
                   upload(context, first_token),
                   p_TE.rows,
                   int(dp_GE.rows),
                   int(p_TE.cols),
                   int(choice_Tk.cols),
                   renormalize,
                   float(2 * z_scale)};
  launch(backward_kernel, token_blocks(p_TE.rows), kThreads, 0, context, o);
}

std::size_t scratch_bytes(std::int64_t tokens, std::int64_t experts) {
  return scratch_size<std::int32_t>(tokens) + scratch_size<std::int32_t>(kMostParts * experts) +
         scratch_size<std::int32_t>(1) + measure_scratch();
}

}  // namespace

const RouterKernels router_kernels = {jitter,     softmax,  top_k,         spread,  weigh,   admit,
                                      count,      assign,   expert_choice, row_map, measure, balance_gradient,
                                      add_claims, backward, scratch_bytes};

}  // namespace flanmoe::cuda
