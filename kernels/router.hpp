// Routing: probabilities, who chooses whom, slots, rows, and the gradient (paper facts 4.3 to 4.6). Always in A.
//
// Copies of tokens are addressed by (t, j): row t and column j of tables with k columns. Where tokens choose, j numbers
// the choices of token t, best first. Where experts choose, k is E and column j belongs to expert j, so that a token
// can have any number of copies from none to E; its combine weights are then p_TE itself. Everything behind the choice
// (slots, rows, combine, gradient) is the same for both.
#pragma once

#include <cstdint>
#include <span>

#include "kernels/context.hpp"
#include "tensor/philox.hpp"
#include "tensor/tensor.hpp"

namespace flanmoe {

/// In which order the tokens of a group claim the slots of an expert (paper facts 4.4).
enum class SlotPriority : std::uint8_t {
  token_order,  // first choices in token order, then second choices in token order, ...
  probability,  // the same with tokens sorted by descending p of their first choice, ties in token order
};

/// Which choices after the first one claim a slot at all (paper facts 4.4).
enum class SecondPolicy : std::uint8_t { all, none, threshold, random };
struct SecondChoices {
  SecondPolicy policy = SecondPolicy::all;
  double threshold = 0.2;
  RandomKey
      key;  // random: choice j of token t draws word j of the stream of (row_T[t], position_T[t]), u = word / 2^32
  std::span<const std::int64_t> row_T;
  std::span<const std::int32_t> position_T;
};

/// Factors uniform in [1 - size, 1 + size), one for each element: word c of the stream of (row_T[t], position_T[t]).
struct Jitter {
  double size = 0.0;
  RandomKey key;
  std::span<const std::int64_t> row_T;
  std::span<const std::int32_t> position_T;
};

/// Places in what RouterKernels::measure writes.
struct RouterMeasures {
  static constexpr std::int64_t entropy = 0;   // sum over tokens of the entropy of p, log_z - sum_e p_e logit_e (nats)
  static constexpr std::int64_t log_z2 = 1;    // sum over tokens of log_z^2
  static constexpr std::int64_t unrouted = 2;  // tokens that no expert keeps
  static constexpr std::int64_t balance = 3;   // sum over groups of sum_e balance_ge * (sum_t p_te) / tokens^2
  static constexpr std::int64_t per_expert = 4;  // claims of every expert, then kept copies of every expert
  static std::int64_t size(std::int64_t experts) { return per_expert + 2 * experts; }
};

struct RouterKernels {
  /// y_TD (A) = x_TD (C or A) times the factors. y may be x. The backward is the same product with the gradient.
  void (*jitter)(KernelContext&, const Tensor& y_TD, const Tensor& x_TD, const Jitter&);

  /// p_TE = softmax(logits_TE); log_z_T = logsumexp.
  void (*softmax)(KernelContext&, const Tensor& p_TE, const Tensor& log_z_T, const Tensor& logits_TE);

  /// choice_Tk (i32) = the k experts with the largest p + bias, largest first, ties to the lower expert. bias_E: 1 x E,
  /// or absent (0).
  void (*top_k)(KernelContext&, const Tensor& choice_Tk, const Tensor& p_TE, const Tensor& bias_E);
  /// Choices that load `experts` experts evenly whatever the tokens are: (row + position * k + j) modulo experts.
  void (*spread)(KernelContext&, const Tensor& choice_Tk, std::int64_t experts, std::span<const std::int64_t> row_T,
                 std::span<const std::int32_t> position_T);
  /// weight_Tk = p at the choices, divided by their sum when `renormalize`; 1 / k where that sum is almost 0.
  void (*weigh)(KernelContext&, const Tensor& weight_Tk, const Tensor& p_TE, const Tensor& choice_Tk, bool renormalize);
  /// kept_Tk (i32) = 1 where the choice is to claim a slot, else 0: every first choice, and of the others with weight w
  /// those with w > threshold (threshold) or u < w / threshold (random).
  void (*admit)(KernelContext&, const Tensor& kept_Tk, const Tensor& weight_Tk, const SecondChoices&);
  /// count_GE (i32) = how often the first `columns` columns of choice_Tk name an expert, per group.
  void (*count)(KernelContext&, const Tensor& count_GE, const Tensor& choice_Tk, std::int64_t columns,
                std::span<const std::int64_t> first_token);

  /// Gives slots. Group g owns tokens [first_token[g], first_token[g+1]); each expert has capacity[g] slots in it
  /// (INT64_MAX: dropless). kept_Tk (i32) is 1 on entry where the choice claims a slot, and on return where it got one:
  /// iff fewer than capacity[g] claims for that expert came before it; claims that overflow count as claims. p_TE is
  /// read for SlotPriority::probability only: what counts is the probability of the first choice, whatever the combine
  /// weights. chosen_GE (i32) = claims per group and expert before capacity.
  void (*assign)(KernelContext&, const Tensor& kept_Tk, const Tensor& chosen_GE, const Tensor& choice_Tk,
                 const Tensor& p_TE, std::span<const std::int64_t> first_token, std::span<const std::int64_t> capacity,
                 SlotPriority priority);

  /// Each expert takes its capacity[g] most probable tokens of group g, ties to the earlier token; all of them when
  /// there are no more. kept_TE (i32) = 1 where expert e took token t, choice_TE[t][e] = e, chosen_GE = tokens taken.
  void (*expert_choice)(KernelContext&, const Tensor& kept_TE, const Tensor& chosen_GE, const Tensor& choice_TE,
                        const Tensor& p_TE, std::span<const std::int64_t> first_token,
                        std::span<const std::int64_t> capacity);

  /// Rows for the experts: histogram, exclusive scan, row map. count_E (i32, 1 x E) = kept copies per expert.
  /// slot_Tk (i32) = row of copy (t, j) in expert order, -1 when not kept; rows of an expert are ordered by token, and
  /// by choice inside a token. token_N (i32, N x 1, room for all kept copies) = token of each row; entries past the
  /// last row are -1.
  void (*row_map)(KernelContext&, const Tensor& slot_Tk, const Tensor& token_N, const Tensor& count_E,
                  const Tensor& choice_Tk, const Tensor& kept_Tk);

  /// What a forward did, in fp64 and in a fixed order: measure_S (f64, 1 x RouterMeasures::size(E)). logits_TE, p_TE
  /// and log_z_T as of softmax; kept_Tk and count_E as of row_map; chosen_GE: claims before capacity; balance_GE (i32):
  /// the choices that the balance loss counts, absent where there is none.
  void (*measure)(KernelContext&, const Tensor& measure_S, const Tensor& logits_TE, const Tensor& p_TE,
                  const Tensor& log_z_T, const Tensor& kept_Tk, const Tensor& count_E, const Tensor& chosen_GE,
                  const Tensor& balance_GE, std::span<const std::int64_t> first_token);

  /// dp_GE (A) = the gradient of the balance loss by p of every token of group g and expert e: weight * f_ge /
  /// (step_groups * tokens of the group), f the fraction of its tokens that chose e in balance_GE (i32). 0 where nobody
  /// did, in a group without tokens, and everywhere with balance_GE absent.
  void (*balance_gradient)(KernelContext&, const Tensor& dp_GE, const Tensor& balance_GE,
                           std::span<const std::int64_t> first_token, double weight, std::int64_t step_groups);
  /// claims_E (A, 1 x E) += sum over groups of chosen_GE (i32). Whole numbers: exact in any order.
  void (*add_claims)(KernelContext&, const Tensor& claims_E, const Tensor& chosen_GE);

  /// dlogits_TE (written). dweight_Tk: gradient of the loss by the (renormalised) combine weights, 0 where not kept.
  /// dp_GE (G x E): the gradient of the balance loss by p of every token of group g and expert e (the fraction chosen
  /// is a constant). z_scale: gradient of the router z-loss is z_scale * 2 * log_z * p.
  ///
  ///     dlogit_j = p_j (g_j - sum_e p_e g_e) + 2 z_scale log_z p_j
  ///
  /// with g = dweight carried through the renormalisation to the chosen p, plus dp_GE.
  void (*backward)(KernelContext&, const Tensor& dlogits_TE, const Tensor& dweight_Tk, const Tensor& dp_GE,
                   double z_scale, const Tensor& p_TE, const Tensor& log_z_T, const Tensor& choice_Tk,
                   std::span<const std::int64_t> first_token, bool renormalize);
  /// Bytes of scratch that assign, expert_choice and measure need for at most so many tokens.
  std::size_t (*scratch_bytes)(std::int64_t tokens, std::int64_t experts);
};

}  // namespace flanmoe

namespace flanmoe::reference {
extern const RouterKernels router_kernels;
}
namespace flanmoe::cpu {
extern const RouterKernels router_kernels;
}
namespace flanmoe::cuda {
/// scratch_bytes: of any of these, not of assign, expert_choice and measure alone.
extern const RouterKernels router_kernels;
}  // namespace flanmoe::cuda
