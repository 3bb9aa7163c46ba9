// What a routing did, as numbers for the host, and what its losses need: everything that the host would otherwise have
// to read of tables of tokens.
#include <algorithm>

#include "kernels/cuda/elements.cuh"
#include "kernels/cuda/router_select.cuh"
#include "kernels/router_checks.hpp"

namespace flanmoe::cuda {
namespace {

constexpr int kParts = 128;  // blocks that add up tokens
constexpr int kSums = 4;     // entropy, log_z2, unrouted, balance: the first places of RouterMeasures

struct Measure {
  double *measure, *part_sums;  // part_sums: kParts x kSums
  Elements<const float> logits, p, log_z;
  Elements<const std::int32_t> kept, chosen, balance;  // balance: null where there is none
  const std::int32_t* count;
  const std::int64_t* first_token;
  std::int64_t tokens;
  int parts, groups, E, k;
};

/// A warp a token, a stretch of tokens a block.
__global__ void __launch_bounds__(kThreads) measure_tokens(Measure o) {
  constexpr int warps = kThreads / kWarp;
  const int warp = int(threadIdx.x) / kWarp, lane = int(threadIdx.x) % kWarp;
  const std::int64_t stretch = (o.tokens + o.parts - 1) / o.parts;
  const std::int64_t begin = blockIdx.x * stretch, end = std::min(o.tokens, begin + stretch);
  double entropy = 0, log_z2 = 0, unrouted = 0, balance = 0;  // of lane 0
  for (std::int64_t t = begin + warp; t < end; t += warps) {
    const int group = group_of(o.first_token, o.groups, t);
    double logit = 0, chosen = 0;
    for (int e = lane; e < o.E; e += kWarp) {
      const double p = double(*o.p.at(t, e));
      logit += p * double(*o.logits.at(t, e));
      if (o.balance.data != nullptr) chosen += p * double(*o.balance.at(group, e));
    }
    int kept = 0;
    for (int j = lane; j < o.k; j += kWarp) kept += *o.kept.at(t, j) != 0 ? 1 : 0;
    logit = warp_reduce(logit);
    chosen = warp_reduce(chosen);
    kept = warp_reduce(kept);
    if (lane != 0) continue;
    const double log_z = double(*o.log_z.at(t, 0));
    const double size = double(o.first_token[group + 1] - o.first_token[group]);
    entropy += log_z - logit;
    log_z2 += log_z * log_z;
    unrouted += kept == 0 ? 1 : 0;
    balance += chosen / (size * size);
  }
  auto* room = shared_memory<double>();
  entropy = block_reduce(entropy, room);
  log_z2 = block_reduce(log_z2, room);
  unrouted = block_reduce(unrouted, room);
  balance = block_reduce(balance, room);
  if (threadIdx.x != 0) return;
  double* sums = o.part_sums + std::int64_t(blockIdx.x) * kSums;
  sums[RouterMeasures::entropy] = entropy;
  sums[RouterMeasures::log_z2] = log_z2;
  sums[RouterMeasures::unrouted] = unrouted;
  sums[RouterMeasures::balance] = balance;
}

/// One block: the parts in their order, and the counts of experts.
__global__ void __launch_bounds__(kThreads) finish_measure(Measure o) {
  if (int(threadIdx.x) < kSums) {
    double sum = 0;
    for (int part = 0; part < o.parts; ++part) sum += o.part_sums[part * kSums + int(threadIdx.x)];
    o.measure[threadIdx.x] = sum;
  }
  for (int e = int(threadIdx.x); e < o.E; e += kThreads) {
    double claims = 0;
    for (int g = 0; g < o.groups; ++g) claims += double(*o.chosen.at(g, e));
    o.measure[RouterMeasures::per_expert + e] = claims;
    o.measure[RouterMeasures::per_expert + o.E + e] = double(o.count[e]);
  }
}

struct BalanceGradient {
  Elements<float> dp;
  Elements<const std::int32_t> balance;  // null where there is none
  const std::int64_t* first_token;
  double weight, step_groups;
  __device__ void operator()(std::int64_t g, std::int64_t e) const {
    const double tokens = double(first_token[g + 1] - first_token[g]);
    const double f = balance.data == nullptr || tokens == 0 ? 0 : double(*balance.at(g, e)) / tokens;
    *dp.at(g, e) = f > 0 ? float(weight * f / (step_groups * tokens)) : 0.0F;
  }
};

struct AddClaims {
  Elements<float> claims;
  Elements<const std::int32_t> chosen;
  std::int64_t groups;
  __device__ void operator()(std::int64_t /*row*/, std::int64_t e) const {
    float sum = *claims.at(0, e);
    for (std::int64_t g = 0; g < groups; ++g) sum += float(*chosen.at(g, e));
    *claims.at(0, e) = sum;
  }
};

}  // namespace

void measure(KernelContext& context, const Tensor& measure_S, const Tensor& logits_TE, const Tensor& p_TE,
             const Tensor& log_z_T, const Tensor& kept_Tk, const Tensor& count_E, const Tensor& chosen_GE,
             const Tensor& balance_GE, std::span<const std::int64_t> first_token) {
  expect_measure(measure_S, logits_TE, p_TE, log_z_T, kept_Tk, count_E, chosen_GE, balance_GE, first_token);
  DeviceScratch scratch(context);
  const int parts = int(std::min<std::int64_t>(kParts, (p_TE.rows + kThreads / kWarp - 1) / (kThreads / kWarp)));
  const Measure o{measure_S.as<double>(),
                  scratch.take<double>(kParts * kSums),
                  elements<const float>(logits_TE),
                  elements<const float>(p_TE),
                  elements<const float>(log_z_T),
                  elements<const std::int32_t>(kept_Tk),
                  elements<const std::int32_t>(chosen_GE),
                  elements<const std::int32_t>(balance_GE),
                  count_E.as<std::int32_t>(),
                  upload(context, first_token),
                  p_TE.rows,
                  parts,
                  int(chosen_GE.rows),
                  int(p_TE.cols),
                  int(kept_Tk.cols)};
  launch(measure_tokens, unsigned(parts), kThreads, block_reduce_bytes<double>(kThreads), context, o);
  launch(finish_measure, 1, kThreads, 0, context, o);
}

std::size_t measure_scratch() { return scratch_size<double>(kParts * kSums); }

void balance_gradient(KernelContext& context, const Tensor& dp_GE, const Tensor& balance_GE,
                      std::span<const std::int64_t> first_token, double weight, std::int64_t step_groups) {
  expect_balance_gradient(dp_GE, balance_GE, first_token);
  const std::int64_t E = dp_GE.cols, all = dp_GE.size();
  if (all == 0) return;
  const BalanceGradient f{elements<float>(dp_GE), elements<const std::int32_t>(balance_GE),
                          upload(context, first_token), weight, double(step_groups)};
  launch(over_pieces<std::int64_t, BalanceGradient>, striding_blocks(all, kThreads), kThreads, 0, context, f, all, E);
}

void add_claims(KernelContext& context, const Tensor& claims_E, const Tensor& chosen_GE) {
  expect_claims(claims_E, chosen_GE);
  const std::int64_t E = claims_E.cols;
  const AddClaims f{elements<float>(claims_E), elements<const std::int32_t>(chosen_GE), chosen_GE.rows};
  launch(over_pieces<std::int64_t, AddClaims>, striding_blocks(E, kThreads), kThreads, 0, context, f, E, E);
}

}  // namespace flanmoe::cuda
