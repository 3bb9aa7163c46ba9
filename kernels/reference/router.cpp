#include "kernels/router.hpp"

#include <algorithm>
#include <cmath>

#include "kernels/dispatch.hpp"
#include "kernels/scratch.hpp"

namespace flanmoe::reference {
namespace {

/// Inserts experts in ascending order into a list sorted by descending p; an equal p stays behind the lower expert.
/// NaN never moves ahead, so the choices are distinct experts whatever p holds.
template <class A>
void choose(std::int32_t* choice, std::int64_t k, const A* p, std::int64_t E) {
  std::int64_t count = 0;
  for (std::int64_t e = 0; e < E; ++e) {
    if (count == k && !(p[e] > p[choice[k - 1]])) continue;
    std::int64_t place = count < k ? count++ : k - 1;
    for (; place > 0 && p[e] > p[choice[place - 1]]; --place) choice[place] = choice[place - 1];
    choice[place] = std::int32_t(e);
  }
}

template <class A>
void top_k_in(const Tensor& p_TE, const Tensor& log_z_T, const Tensor& choice_Tk, const Tensor& weight_Tk,
              const Tensor& logits_TE, bool renormalize) {
  const std::int64_t E = p_TE.cols;
  const std::int64_t k = choice_Tk.cols;
  for (std::int64_t t = 0; t < p_TE.rows; ++t) {
    const A* logit = logits_TE.row<A>(t);
    A* p = p_TE.row<A>(t);
    const A largest = *std::max_element(logit, logit + E);
    A sum = 0;
    for (std::int64_t e = 0; e < E; ++e) sum += p[e] = std::exp(logit[e] - largest);
    for (std::int64_t e = 0; e < E; ++e) p[e] /= sum;
    *log_z_T.row<A>(t) = largest + std::log(sum);

    std::int32_t* choice = choice_Tk.row<std::int32_t>(t);
    choose(choice, k, p, E);
    A chosen = 0;
    for (std::int64_t j = 0; j < k; ++j) chosen += p[choice[j]];
    for (std::int64_t j = 0; j < k; ++j) weight_Tk.row<A>(t)[j] = renormalize ? p[choice[j]] / chosen : p[choice[j]];
  }
}

void top_k(KernelContext& /*context*/, const Tensor& p_TE, const Tensor& log_z_T, const Tensor& choice_Tk,
           const Tensor& weight_Tk, const Tensor& logits_TE, bool renormalize) {
  expect_like(p_TE, logits_TE, "p");
  expect_matrix(log_z_T, logits_TE.dtype, logits_TE.rows, 1, "log_z");
  expect_matrix(choice_Tk, DType::i32, logits_TE.rows, choice_Tk.cols, "choice");
  expect_matrix(weight_Tk, logits_TE.dtype, logits_TE.rows, choice_Tk.cols, "weight");
  FLANMOE_EXPECT(choice_Tk.cols <= logits_TE.cols, "{} choices among {} experts", choice_Tk.cols, logits_TE.cols);
  with_type<float, double>(logits_TE, "logits", [&]<class A>(std::type_identity<A>) {
    top_k_in<A>(p_TE, log_z_T, choice_Tk, weight_Tk, logits_TE, renormalize);
  });
}

/// order[0..count) = the tokens first..first+count by descending probability of their first choice, ties in token
/// order.
template <class A>
void sort_by_probability(std::int32_t* order, std::int64_t first, std::int64_t count, const Tensor& p_TE,
                         const Tensor& choice_Tk) {
  const auto key = [&](std::int32_t t) { return p_TE.row<A>(t)[*choice_Tk.row<std::int32_t>(t)]; };
  for (std::int64_t i = 0; i < count; ++i) order[i] = std::int32_t(first + i);
  std::sort(order, order + count, [&](std::int32_t a, std::int32_t b) {
    const A pa = key(a), pb = key(b);
    if (std::isnan(pa) || std::isnan(pb)) return std::isnan(pa) == std::isnan(pb) ? a < b : std::isnan(pb);
    return pa != pb ? pa > pb : a < b;
  });
}

void assign(KernelContext& context, const Tensor& kept_Tk, const Tensor& chosen_GE, const Tensor& choice_Tk,
            const Tensor& p_TE, std::span<const std::int64_t> first_token, std::span<const std::int64_t> capacity,
            SlotPriority priority) {
  const std::int64_t groups = std::int64_t(capacity.size());
  expect_matrix(choice_Tk, DType::i32, kept_Tk.rows, kept_Tk.cols, "choice");
  expect_like(kept_Tk, choice_Tk, "kept");
  expect_matrix(p_TE, p_TE.dtype, kept_Tk.rows, chosen_GE.cols, "p");
  expect_matrix(chosen_GE, DType::i32, groups, chosen_GE.cols, "chosen");
  FLANMOE_EXPECT(
      std::int64_t(first_token.size()) == groups + 1 && first_token.front() == 0 && first_token.back() == kept_Tk.rows,
      "{} group bounds for {} groups of {} tokens", first_token.size(), groups, kept_Tk.rows);
  ScratchScope scratch(context);
  std::int32_t* order = scratch.take<std::int32_t>(kept_Tk.rows);
  for (std::int64_t g = 0; g < groups; ++g) {
    const std::int64_t first = first_token[std::size_t(g)];
    const std::int64_t count = first_token[std::size_t(g) + 1] - first;
    if (priority == SlotPriority::probability) {
      with_type<float, double>(p_TE, "p", [&]<class A>(std::type_identity<A>) {
        sort_by_probability<A>(order, first, count, p_TE, choice_Tk);
      });
    } else {
      for (std::int64_t i = 0; i < count; ++i) order[i] = std::int32_t(first + i);
    }
    std::int32_t* claims = chosen_GE.row<std::int32_t>(g);
    std::fill(claims, claims + chosen_GE.cols, 0);
    for (std::int64_t j = 0; j < kept_Tk.cols; ++j) {
      for (std::int64_t i = 0; i < count; ++i) {
        const std::int32_t earlier = claims[choice_Tk.row<std::int32_t>(order[i])[j]]++;
        kept_Tk.row<std::int32_t>(order[i])[j] = earlier < capacity[std::size_t(g)] ? 1 : 0;
      }
    }
  }
}

std::int64_t row_map(KernelContext& /*context*/, const Tensor& slot_Tk, const Tensor& token_N, const Tensor& count_E,
                     const Tensor& choice_Tk, const Tensor& kept_Tk) {
  const std::int64_t T = choice_Tk.rows;
  const std::int64_t k = choice_Tk.cols;
  expect_matrix(choice_Tk, DType::i32, T, k, "choice");
  expect_like(kept_Tk, choice_Tk, "kept");
  expect_like(slot_Tk, choice_Tk, "slot");
  expect_matrix(token_N, DType::i32, T * k, 1, "token");
  expect_matrix(count_E, DType::i32, 1, count_E.cols, "count");
  std::int64_t row = 0;
  for (std::int64_t n = 0; n < T * k; ++n) *token_N.row<std::int32_t>(n) = -1;
  for (std::int64_t e = 0; e < count_E.cols; ++e) {
    const std::int64_t first_row = row;
    for (std::int64_t t = 0; t < T; ++t) {
      for (std::int64_t j = 0; j < k; ++j) {
        std::int32_t& slot = slot_Tk.row<std::int32_t>(t)[j];
        const bool kept = kept_Tk.row<std::int32_t>(t)[j] != 0;
        if (!kept) slot = -1;
        if (!kept || choice_Tk.row<std::int32_t>(t)[j] != e) continue;
        *token_N.row<std::int32_t>(row) = std::int32_t(t);
        slot = std::int32_t(row++);
      }
    }
    count_E.as<std::int32_t>()[e] = std::int32_t(row - first_row);
  }
  return row;
}

template <class A>
void backward_in(const Tensor& dlogits_TE, const Tensor& dweight_Tk, const Tensor& dp_GE, double z_scale,
                 const Tensor& p_TE, const Tensor& log_z_T, const Tensor& choice_Tk,
                 std::span<const std::int64_t> first_token, bool renormalize) {
  const std::int64_t E = p_TE.cols;
  const std::int64_t k = choice_Tk.cols;
  for (std::int64_t g = 0; g < dp_GE.rows; ++g) {
    for (std::int64_t t = first_token[std::size_t(g)]; t < first_token[std::size_t(g) + 1]; ++t) {
      const A* p = p_TE.row<A>(t);
      const A* dweight = dweight_Tk.row<A>(t);
      const std::int32_t* choice = choice_Tk.row<std::int32_t>(t);
      A* dp = dlogits_TE.row<A>(t);
      std::copy(dp_GE.row<A>(g), dp_GE.row<A>(g) + E, dp);
      // weight_j = p_j / s with s = sum of the chosen p: dp_j = (dweight_j - sum_i dweight_i weight_i) / s.
      A s = 1;
      A shared = 0;
      if (renormalize) {
        s = 0;
        for (std::int64_t j = 0; j < k; ++j) s += p[choice[j]];
        for (std::int64_t j = 0; j < k; ++j) shared += dweight[j] * p[choice[j]] / s;
      }
      for (std::int64_t j = 0; j < k; ++j) dp[choice[j]] += (dweight[j] - shared) / s;

      A mean = 0;
      for (std::int64_t e = 0; e < E; ++e) mean += p[e] * dp[e];
      const A z = A(2 * z_scale) * *log_z_T.row<A>(t);
      for (std::int64_t e = 0; e < E; ++e) dp[e] = p[e] * (dp[e] - mean + z);
    }
  }
}

void backward(KernelContext& /*context*/, const Tensor& dlogits_TE, const Tensor& dweight_Tk, const Tensor& dp_GE,
              double z_scale, const Tensor& p_TE, const Tensor& log_z_T, const Tensor& choice_Tk,
              std::span<const std::int64_t> first_token, bool renormalize) {
  expect_like(dlogits_TE, p_TE, "dlogits");
  expect_matrix(choice_Tk, DType::i32, p_TE.rows, choice_Tk.cols, "choice");
  expect_matrix(dweight_Tk, p_TE.dtype, p_TE.rows, choice_Tk.cols, "dweight");
  expect_matrix(log_z_T, p_TE.dtype, p_TE.rows, 1, "log_z");
  expect_matrix(dp_GE, p_TE.dtype, dp_GE.rows, p_TE.cols, "dp");
  FLANMOE_EXPECT(std::int64_t(first_token.size()) == dp_GE.rows + 1 && first_token.back() == p_TE.rows,
                 "{} group bounds for {} groups of {} tokens", first_token.size(), dp_GE.rows, p_TE.rows);
  with_type<float, double>(p_TE, "p", [&]<class A>(std::type_identity<A>) {
    backward_in<A>(dlogits_TE, dweight_Tk, dp_GE, z_scale, p_TE, log_z_T, choice_Tk, first_token, renormalize);
  });
}

std::size_t scratch_bytes(std::int64_t tokens) { return scratch_size<std::int32_t>(tokens); }

}  // namespace

const RouterKernels router_kernels = {top_k, assign, row_map, backward, scratch_bytes};

}  // namespace flanmoe::reference
