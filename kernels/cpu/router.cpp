#include "kernels/router.hpp"

#include <algorithm>
#include <cmath>
#include <limits>

#include "kernels/cpu/partition.hpp"
#include "kernels/cpu/vector_math.hpp"
#include "kernels/dispatch.hpp"
#include "kernels/scratch.hpp"

namespace flanmoe::cpu {
namespace {

constexpr std::int64_t kTokens = 32;  // tokens of one piece of work

float largest_of(const float* x, std::int64_t n) {
  constexpr std::int64_t lanes = 16;
  std::array<float, lanes> partial;
  partial.fill(-std::numeric_limits<float>::infinity());
  std::int64_t i = 0;
  for (; i + lanes <= n; i += lanes) {
#pragma omp simd
    for (std::int64_t l = 0; l < lanes; ++l) {
      partial[std::size_t(l)] = x[i + l] > partial[std::size_t(l)] ? x[i + l] : partial[std::size_t(l)];
    }
  }
  float largest = *std::max_element(partial.begin(), partial.end());
  for (; i < n; ++i) largest = std::max(largest, x[i]);
  return largest;
}

/// p = softmax(logit); returns logsumexp.
float softmax(float* p, const float* logit, std::int64_t E) {
  const float largest = largest_of(logit, E);
#pragma omp simd
  for (std::int64_t e = 0; e < E; ++e) p[e] = fast_exp(logit[e] - largest);
  const float sum = lane_sum<float, 16>(E, [=](std::int64_t e) { return p[e]; });
#pragma omp simd
  for (std::int64_t e = 0; e < E; ++e) p[e] /= sum;
  return largest + std::log(sum);
}

/// The k largest in descending order, ties to the lower expert: an insertion list that most experts never enter. With
/// NaN in p the choices are still distinct experts.
void choose(std::int32_t* choice, std::int64_t k, const float* p, std::int64_t E) {
  std::int64_t count = 0;
  float bound = 0;
  for (std::int64_t e = 0; e < E; ++e) {
    if (count == k && !(p[e] > bound)) continue;
    std::int64_t place = count < k ? count++ : k - 1;
    for (; place > 0 && p[e] > p[choice[place - 1]]; --place) choice[place] = choice[place - 1];
    choice[place] = std::int32_t(e);
    bound = p[choice[k < count ? k - 1 : count - 1]];
  }
}

void top_k(KernelContext& /*context*/, const Tensor& p_TE, const Tensor& log_z_T, const Tensor& choice_Tk,
           const Tensor& weight_Tk, const Tensor& logits_TE, bool renormalize) {
  const std::int64_t k = choice_Tk.cols;
  const std::int64_t E = logits_TE.cols;
  expect_matrix(logits_TE, DType::f32, logits_TE.rows, E, "logits");
  expect_like(p_TE, logits_TE, "p");
  expect_matrix(log_z_T, DType::f32, logits_TE.rows, 1, "log_z");
  expect_matrix(choice_Tk, DType::i32, logits_TE.rows, k, "choice");
  expect_matrix(weight_Tk, DType::f32, logits_TE.rows, k, "weight");
  FLANMOE_EXPECT(k <= E, "{} choices among {} experts", k, E);
  const auto* logits = logits_TE.as<float>();
  auto* probability = p_TE.as<float>();
  auto* log_z = log_z_T.as<float>();
  auto* choices = choice_Tk.as<std::int32_t>();
  auto* weights = weight_Tk.as<float>();
  for_blocks(logits_TE.rows, kTokens, 4 * E, [&](std::int64_t /*b*/, std::int64_t begin, std::int64_t end) {
    for (std::int64_t t = begin; t < end; ++t) {
      float* p = probability + t * p_TE.stride;
      std::int32_t* choice = choices + t * choice_Tk.stride;
      float* weight = weights + t * weight_Tk.stride;
      log_z[t * log_z_T.stride] = softmax(p, logits + t * logits_TE.stride, E);
      choose(choice, k, p, E);
      float sum = 0;
      for (std::int64_t j = 0; j < k; ++j) sum += weight[j] = p[choice[j]];
      for (std::int64_t j = 0; renormalize && j < k; ++j) weight[j] /= sum;
    }
  });
}

/// order[0..count) = the tokens first..first+count by descending probability of their first choice, ties in token
/// order. Probabilities are not negative, so their bits sort like their values, and NaN has a place too.
void sort_by_probability(std::int32_t* order, std::int64_t first, std::int64_t count, const Tensor& p_TE,
                         const Tensor& choice_Tk) {
  const auto key = [&](std::int32_t t) {
    return std::bit_cast<std::uint32_t>(p_TE.row<float>(t)[*choice_Tk.row<std::int32_t>(t)]);
  };
  for (std::int64_t i = 0; i < count; ++i) order[i] = std::int32_t(first + i);
  std::sort(order, order + count, [&](std::int32_t a, std::int32_t b) {
    const auto pa = key(a), pb = key(b);
    return pa != pb ? pa > pb : a < b;
  });
}

void assign(KernelContext& context, const Tensor& kept_Tk, const Tensor& chosen_GE, const Tensor& choice_Tk,
            const Tensor& p_TE, std::span<const std::int64_t> first_token, std::span<const std::int64_t> capacity,
            SlotPriority priority) {
  const std::int64_t groups = std::int64_t(capacity.size());
  const std::int64_t k = choice_Tk.cols;
  expect_matrix(choice_Tk, DType::i32, kept_Tk.rows, kept_Tk.cols, "choice");
  expect_like(kept_Tk, choice_Tk, "kept");
  expect_matrix(p_TE, DType::f32, kept_Tk.rows, chosen_GE.cols, "p");
  expect_matrix(chosen_GE, DType::i32, groups, chosen_GE.cols, "chosen");
  FLANMOE_EXPECT(
      std::int64_t(first_token.size()) == groups + 1 && first_token.front() == 0 && first_token.back() == kept_Tk.rows,
      "{} group bounds for {} groups of {} tokens", first_token.size(), groups, kept_Tk.rows);
  const bool sorted = priority == SlotPriority::probability;
  ScratchScope scratch(context);
  std::int32_t* order_T = sorted ? scratch.take<std::int32_t>(kept_Tk.rows) : nullptr;
  const auto* choices = choice_Tk.as<std::int32_t>();
  auto* kept = kept_Tk.as<std::int32_t>();
  auto* chosen = chosen_GE.as<std::int32_t>();
  for_blocks(groups, 1, kept_Tk.rows * k, [&](std::int64_t g, std::int64_t /*begin*/, std::int64_t /*end*/) {
    const std::int64_t first = first_token[std::size_t(g)];
    const std::int64_t count = first_token[std::size_t(g) + 1] - first;
    const std::int64_t slots = capacity[std::size_t(g)];
    std::int32_t* claims = chosen + g * chosen_GE.stride;
    std::fill(claims, claims + chosen_GE.cols, 0);
    std::int32_t* order = sorted ? order_T + first : nullptr;
    if (sorted) sort_by_probability(order, first, count, p_TE, choice_Tk);
    for (std::int64_t j = 0; j < k; ++j) {
      for (std::int64_t i = 0; i < count; ++i) {
        const std::int64_t t = sorted ? order[i] : first + i;
        const std::int32_t earlier = claims[choices[t * choice_Tk.stride + j]]++;
        kept[t * kept_Tk.stride + j] = earlier < slots ? 1 : 0;
      }
    }
  });
}

std::int64_t row_map(KernelContext& /*context*/, const Tensor& slot_Tk, const Tensor& token_N, const Tensor& count_E,
                     const Tensor& choice_Tk, const Tensor& kept_Tk) {
  const std::int64_t T = choice_Tk.rows;
  const std::int64_t k = choice_Tk.cols;
  const std::int64_t E = count_E.cols;
  expect_matrix(choice_Tk, DType::i32, T, k, "choice");
  expect_like(kept_Tk, choice_Tk, "kept");
  expect_like(slot_Tk, choice_Tk, "slot");
  expect_matrix(token_N, DType::i32, T * k, 1, "token");
  expect_matrix(count_E, DType::i32, 1, E, "count");
  const auto* choices = choice_Tk.as<std::int32_t>();
  const auto* kept = kept_Tk.as<std::int32_t>();
  auto* slots = slot_Tk.as<std::int32_t>();
  auto* tokens = token_N.as<std::int32_t>();
  auto* next = count_E.as<std::int32_t>();

  // Histogram.
  std::fill(next, next + E, 0);
  for (std::int64_t t = 0; t < T; ++t) {
    for (std::int64_t j = 0; j < k; ++j) next[choices[t * choice_Tk.stride + j]] += kept[t * kept_Tk.stride + j];
  }
  // Exclusive scan: next[e] = first row of expert e.
  std::int32_t rows = 0;
  for (std::int64_t e = 0; e < E; ++e) {
    const std::int32_t count = next[e];
    next[e] = rows;
    rows += count;
  }
  // Row map; afterwards next[e] is the end of expert e.
  for (std::int64_t t = 0; t < T; ++t) {
    for (std::int64_t j = 0; j < k; ++j) {
      std::int32_t& slot = slots[t * slot_Tk.stride + j];
      slot = kept[t * kept_Tk.stride + j] != 0 ? next[choices[t * choice_Tk.stride + j]]++ : -1;
      if (slot >= 0) tokens[slot * token_N.stride] = std::int32_t(t);
    }
  }
  for (std::int64_t n = rows; n < T * k; ++n) tokens[n * token_N.stride] = -1;
  for (std::int64_t e = E - 1; e > 0; --e) next[e] -= next[e - 1];
  return rows;
}

/// dlogit = p (g - <p, g> + z), where dlogit holds the part of g that comes from the balance loss on entry.
void backward_token(float* dlogit, const float* dweight, const float* p, const std::int32_t* choice, float z,
                    std::int64_t E, std::int64_t k, bool renormalize) {
  float sum = 1;
  float shared = 0;
  if (renormalize) {
    sum = 0;
    for (std::int64_t j = 0; j < k; ++j) sum += p[choice[j]];
    for (std::int64_t j = 0; j < k; ++j) shared += dweight[j] * p[choice[j]] / sum;
  }
  for (std::int64_t j = 0; j < k; ++j) dlogit[choice[j]] += (dweight[j] - shared) / sum;
  const float mean = lane_sum<float, 16>(E, [=](std::int64_t e) { return p[e] * dlogit[e]; });
#pragma omp simd
  for (std::int64_t e = 0; e < E; ++e) dlogit[e] = p[e] * (dlogit[e] - mean + z);
}

void backward(KernelContext& /*context*/, const Tensor& dlogits_TE, const Tensor& dweight_Tk, const Tensor& dp_GE,
              double z_scale, const Tensor& p_TE, const Tensor& log_z_T, const Tensor& choice_Tk,
              std::span<const std::int64_t> first_token, bool renormalize) {
  const std::int64_t E = p_TE.cols;
  const std::int64_t k = choice_Tk.cols;
  expect_matrix(p_TE, DType::f32, p_TE.rows, E, "p");
  expect_like(dlogits_TE, p_TE, "dlogits");
  expect_matrix(choice_Tk, DType::i32, p_TE.rows, k, "choice");
  expect_matrix(dweight_Tk, DType::f32, p_TE.rows, k, "dweight");
  expect_matrix(log_z_T, DType::f32, p_TE.rows, 1, "log_z");
  expect_matrix(dp_GE, DType::f32, dp_GE.rows, E, "dp");
  FLANMOE_EXPECT(std::int64_t(first_token.size()) == dp_GE.rows + 1 && first_token.back() == p_TE.rows,
                 "{} group bounds for {} groups of {} tokens", first_token.size(), dp_GE.rows, p_TE.rows);
  const auto* p = p_TE.as<float>();
  const auto* log_z = log_z_T.as<float>();
  const auto* choice = choice_Tk.as<std::int32_t>();
  const auto* dweight = dweight_Tk.as<float>();
  const auto* dp = dp_GE.as<float>();
  auto* dlogits = dlogits_TE.as<float>();
  for_blocks(p_TE.rows, kTokens, 4 * E, [&](std::int64_t /*b*/, std::int64_t begin, std::int64_t end) {
    std::int64_t g = std::upper_bound(first_token.begin(), first_token.end(), begin) - first_token.begin() - 1;
    for (std::int64_t t = begin; t < end; ++t) {
      while (t >= first_token[std::size_t(g) + 1]) ++g;
      float* dlogit = dlogits + t * dlogits_TE.stride;
      std::copy(dp + g * dp_GE.stride, dp + g * dp_GE.stride + E, dlogit);
      backward_token(dlogit, dweight + t * dweight_Tk.stride, p + t * p_TE.stride, choice + t * choice_Tk.stride,
                     float(2 * z_scale) * log_z[t * log_z_T.stride], E, k, renormalize);
    }
  });
}

std::size_t scratch_bytes(std::int64_t tokens) { return scratch_size<std::int32_t>(tokens); }

}  // namespace

const RouterKernels router_kernels = {top_k, assign, row_map, backward, scratch_bytes};

}  // namespace flanmoe::cpu
