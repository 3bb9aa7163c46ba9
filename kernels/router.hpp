// Token-choice routing: probabilities, choices, slots, and their gradient (paper facts 4.3, 4.4, 4.6). Always in A.
#pragma once

#include <cstdint>
#include <span>

#include "kernels/context.hpp"
#include "tensor/tensor.hpp"

namespace flanmoe {

/// In which order the tokens of a group claim the slots of an expert (paper facts 4.4).
enum class SlotPriority : std::uint8_t {
  token_order,  // first choices in token order, then second choices in token order, ...
  probability,  // the same with tokens sorted by descending weight_Tk[t][0], ties in token order (batch priority)
};

struct RouterKernels {
  /// p_TE = softmax(logits_TE); log_z_T = logsumexp; choice_Tk (i32) = indices of the k largest p, largest first, ties
  /// to the lower expert; weight_Tk = p at the choices, divided by their sum when `renormalize` (GShard).
  void (*top_k)(KernelContext&, const Tensor& p_TE, const Tensor& log_z_T, const Tensor& choice_Tk,
                const Tensor& weight_Tk, const Tensor& logits_TE, bool renormalize);

  /// Gives slots. Group g owns tokens [first_token[g], first_token[g+1]); each expert has capacity[g] slots in it
  /// (INT64_MAX: dropless). Choice j of token t is kept iff fewer than capacity[g] claims for that expert came before
  /// it; claims that overflow count as claims. p_TE is read for SlotPriority::probability only: what counts is the
  /// probability of the first choice, whatever the combine weights. kept_Tk (i32) = 1 or 0. chosen_GE (i32) = claims
  /// per group and expert before capacity.
  void (*assign)(KernelContext&, const Tensor& kept_Tk, const Tensor& chosen_GE, const Tensor& choice_Tk,
                 const Tensor& p_TE, std::span<const std::int64_t> first_token, std::span<const std::int64_t> capacity,
                 SlotPriority priority);

  /// Rows for the experts: histogram, exclusive scan, row map. count_E (i32, 1 x E) = kept copies per expert.
  /// slot_Tk (i32) = row of copy (t, j) in expert order, -1 when dropped; rows of an expert are ordered by token, and
  /// by choice inside a token. token_N (i32, N x 1, N = T*k) = token of each row; entries past the last row are -1.
  /// Returns the number of rows.
  std::int64_t (*row_map)(KernelContext&, const Tensor& slot_Tk, const Tensor& token_N, const Tensor& count_E,
                          const Tensor& choice_Tk, const Tensor& kept_Tk);

  /// dlogits_TE (written). dweight_Tk: gradient of the loss by the (renormalised) combine weights, 0 where dropped.
  /// dp_GE (G x E): the gradient of the balance loss by p of every token of group g and expert e (the fraction chosen
  /// is a constant). z_scale: gradient of the router z-loss is z_scale * 2 * log_z * p.
  ///
  ///     dlogit_j = p_j (g_j - sum_e p_e g_e) + 2 z_scale log_z p_j
  ///
  /// with g = dweight carried through the renormalisation to the chosen p, plus dp_GE.
  void (*backward)(KernelContext&, const Tensor& dlogits_TE, const Tensor& dweight_Tk, const Tensor& dp_GE,
                   double z_scale, const Tensor& p_TE, const Tensor& log_z_T, const Tensor& choice_Tk,
                   std::span<const std::int64_t> first_token, bool renormalize);
  /// Bytes of scratch that assign needs for at most so many tokens.
  std::size_t (*scratch_bytes)(std::int64_t tokens);
};

}  // namespace flanmoe

namespace flanmoe::reference {
extern const RouterKernels router_kernels;
}
namespace flanmoe::cpu {
extern const RouterKernels router_kernels;
}
