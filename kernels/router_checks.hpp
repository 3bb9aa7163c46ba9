// Checks of the operands of the routing operations, the same for every device.
#pragma once

#include "kernels/dispatch.hpp"
#include "kernels/router.hpp"

namespace flanmoe {

/// Chosen probabilities that sum to less are not renormalised: the weights are equal, without a gradient. Only a bias
/// or forced choices lead there; division would give NaN or overflow.
inline constexpr float kLeastChosen = 1e-30F;

inline void expect_streams(std::span<const std::int64_t> row_T, std::span<const std::int32_t> position_T,
                           std::int64_t tokens) {
  FLANMOE_EXPECT(std::int64_t(row_T.size()) == tokens && std::int64_t(position_T.size()) == tokens,
                 "{} rows and {} positions for {} tokens", row_T.size(), position_T.size(), tokens);
}

inline void expect_groups(std::span<const std::int64_t> first_token, std::int64_t groups, std::int64_t tokens) {
  FLANMOE_EXPECT(
      std::int64_t(first_token.size()) == groups + 1 && first_token.front() == 0 && first_token.back() == tokens,
      "{} group bounds for {} groups of {} tokens", first_token.size(), groups, tokens);
}

inline void expect_jitter(const Tensor& y_TD, const Tensor& x_TD, const Jitter& jitter) {
  expect_matrix(y_TD, accumulate_dtype(x_TD.dtype), x_TD.rows, x_TD.cols, "y");
  FLANMOE_EXPECT(jitter.size > 0 && jitter.size < 1, "a jitter of {}", jitter.size);
  expect_streams(jitter.row_T, jitter.position_T, x_TD.rows);
}

inline void expect_softmax(const Tensor& p_TE, const Tensor& log_z_T, const Tensor& logits_TE) {
  expect_like(p_TE, logits_TE, "p");
  expect_matrix(log_z_T, logits_TE.dtype, logits_TE.rows, 1, "log_z");
}

inline void expect_top_k(const Tensor& choice_Tk, const Tensor& p_TE, const Tensor& bias_E) {
  expect_matrix(choice_Tk, DType::i32, p_TE.rows, choice_Tk.cols, "choice");
  if (!bias_E.absent()) expect_matrix(bias_E, p_TE.dtype, 1, p_TE.cols, "bias");
  FLANMOE_EXPECT(choice_Tk.cols <= p_TE.cols, "{} choices among {} experts", choice_Tk.cols, p_TE.cols);
}

inline void expect_spread(const Tensor& choice_Tk, std::int64_t experts, std::span<const std::int64_t> row_T,
                          std::span<const std::int32_t> position_T) {
  expect_matrix(choice_Tk, DType::i32, choice_Tk.rows, choice_Tk.cols, "choice");
  FLANMOE_EXPECT(choice_Tk.cols <= experts, "{} choices among {} experts", choice_Tk.cols, experts);
  expect_streams(row_T, position_T, choice_Tk.rows);
}

inline void expect_weigh(const Tensor& weight_Tk, const Tensor& p_TE, const Tensor& choice_Tk) {
  expect_matrix(choice_Tk, DType::i32, p_TE.rows, choice_Tk.cols, "choice");
  expect_matrix(weight_Tk, p_TE.dtype, p_TE.rows, choice_Tk.cols, "weight");
}

inline void expect_admit(const Tensor& kept_Tk, const Tensor& weight_Tk, const SecondChoices& second) {
  expect_matrix(kept_Tk, DType::i32, weight_Tk.rows, weight_Tk.cols, "kept");
  if (second.policy == SecondPolicy::all || second.policy == SecondPolicy::none) return;
  FLANMOE_EXPECT(second.threshold > 0, "a threshold of {} for second choices", second.threshold);
  if (second.policy == SecondPolicy::random) expect_streams(second.row_T, second.position_T, weight_Tk.rows);
}

inline void expect_count(const Tensor& count_GE, const Tensor& choice_Tk, std::int64_t columns,
                         std::span<const std::int64_t> first_token) {
  expect_matrix(choice_Tk, DType::i32, choice_Tk.rows, choice_Tk.cols, "choice");
  expect_matrix(count_GE, DType::i32, count_GE.rows, count_GE.cols, "count");
  FLANMOE_EXPECT(columns <= choice_Tk.cols, "{} of {} choices", columns, choice_Tk.cols);
  expect_groups(first_token, count_GE.rows, choice_Tk.rows);
}

inline void expect_assign(const Tensor& kept_Tk, const Tensor& chosen_GE, const Tensor& choice_Tk, const Tensor& p_TE,
                          std::span<const std::int64_t> first_token, std::span<const std::int64_t> capacity) {
  expect_matrix(choice_Tk, DType::i32, kept_Tk.rows, kept_Tk.cols, "choice");
  expect_like(kept_Tk, choice_Tk, "kept");
  expect_matrix(p_TE, p_TE.dtype, kept_Tk.rows, chosen_GE.cols, "p");
  expect_matrix(chosen_GE, DType::i32, std::int64_t(capacity.size()), chosen_GE.cols, "chosen");
  expect_groups(first_token, chosen_GE.rows, kept_Tk.rows);
}

inline void expect_expert_choice(const Tensor& kept_TE, const Tensor& chosen_GE, const Tensor& choice_TE,
                                 const Tensor& p_TE, std::span<const std::int64_t> first_token,
                                 std::span<const std::int64_t> capacity) {
  expect_matrix(choice_TE, DType::i32, p_TE.rows, p_TE.cols, "choice");
  expect_assign(kept_TE, chosen_GE, choice_TE, p_TE, first_token, capacity);
}

inline void expect_row_map(const Tensor& slot_Tk, const Tensor& token_N, const Tensor& count_E, const Tensor& choice_Tk,
                           const Tensor& kept_Tk) {
  expect_matrix(choice_Tk, DType::i32, choice_Tk.rows, choice_Tk.cols, "choice");
  expect_like(kept_Tk, choice_Tk, "kept");
  expect_like(slot_Tk, choice_Tk, "slot");
  expect_matrix(token_N, DType::i32, token_N.rows, 1, "token");
  expect_matrix(count_E, DType::i32, 1, count_E.cols, "count");
}

inline void expect_measure(const Tensor& measure_S, const Tensor& logits_TE, const Tensor& p_TE, const Tensor& log_z_T,
                           const Tensor& kept_Tk, const Tensor& count_E, const Tensor& chosen_GE,
                           const Tensor& balance_GE, std::span<const std::int64_t> first_token) {
  const std::int64_t E = p_TE.cols;
  expect_matrix(measure_S, DType::f64, 1, RouterMeasures::size(E), "measure");
  expect_softmax(p_TE, log_z_T, logits_TE);
  expect_matrix(kept_Tk, DType::i32, p_TE.rows, kept_Tk.cols, "kept");
  expect_matrix(count_E, DType::i32, 1, E, "count");
  expect_matrix(chosen_GE, DType::i32, chosen_GE.rows, E, "chosen");
  if (!balance_GE.absent()) expect_like(balance_GE, chosen_GE, "balance");
  expect_groups(first_token, chosen_GE.rows, p_TE.rows);
}

inline void expect_balance_gradient(const Tensor& dp_GE, const Tensor& balance_GE,
                                    std::span<const std::int64_t> first_token) {
  if (!balance_GE.absent()) expect_matrix(balance_GE, DType::i32, dp_GE.rows, dp_GE.cols, "balance");
  FLANMOE_EXPECT(std::int64_t(first_token.size()) == dp_GE.rows + 1, "{} group bounds for {} groups",
                 first_token.size(), dp_GE.rows);
}

inline void expect_claims(const Tensor& claims_E, const Tensor& chosen_GE) {
  expect_matrix(claims_E, claims_E.dtype, 1, chosen_GE.cols, "claims");
  expect_matrix(chosen_GE, DType::i32, chosen_GE.rows, chosen_GE.cols, "chosen");
}

inline void expect_backward(const Tensor& dlogits_TE, const Tensor& dweight_Tk, const Tensor& dp_GE, const Tensor& p_TE,
                            const Tensor& log_z_T, const Tensor& choice_Tk, std::span<const std::int64_t> first_token) {
  expect_like(dlogits_TE, p_TE, "dlogits");
  expect_matrix(choice_Tk, DType::i32, p_TE.rows, choice_Tk.cols, "choice");
  expect_matrix(dweight_Tk, p_TE.dtype, p_TE.rows, choice_Tk.cols, "dweight");
  expect_matrix(log_z_T, p_TE.dtype, p_TE.rows, 1, "log_z");
  expect_matrix(dp_GE, p_TE.dtype, dp_GE.rows, p_TE.cols, "dp");
  expect_groups(first_token, dp_GE.rows, p_TE.rows);
}

}  // namespace flanmoe
