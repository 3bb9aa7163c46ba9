// Who goes where, with which weight: the router of a sparse layer (paper facts 4.3, 4.4, 4.6). Always in A.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "moe/layer_context.hpp"

namespace flanmoe {

/// What one sparse layer did, summed over the tokens that this rank routed; additive over microbatches and ranks.
struct MoeLayerStatistics {
  std::string layer;           // "encoder/layer_01"
  std::vector<double> load_E;  // claims per expert before capacity
  double tokens = 0;           // routed tokens
  double dropped = 0;          // choices dropped by capacity, of tokens*k
  double balance = 0, z = 0;   // this layer's balance and router z-loss, before coefficients
  double entropy = 0;          // sum over tokens of the entropy of p (nats)
};

/// The tokens of this rank as routing groups, and the sizes of the whole step that normalise the losses.
struct RoutingGroups {
  std::vector<std::int64_t> first_token;  // groups+1 offsets
  std::int64_t step_groups = 1;           // groups of the whole step, over all ranks
  std::int64_t step_tokens = 1;           // tokens of the whole step on this side
  std::int64_t count() const { return std::int64_t(first_token.size()) - 1; }
  std::int64_t tokens() const { return first_token.back(); }
};

/// Slots per expert in a group of `tokens` tokens: max(round(factor*tokens/experts), minimum), rounding half to even
/// (flaxformer; paper facts 4.3); factor 0 is dropless.
std::int64_t expert_capacity(double factor, std::int64_t tokens, std::int64_t experts, std::int64_t minimum);

/// Saved by route() for combine and backward; buffers for the largest microbatch.
struct RouterActivations {
  Tensor input_TD;                              // x in A; laid only when C is not A
  Tensor p_TE, log_z_T, weight_Tk;              // A
  Tensor choice_Tk, kept_Tk, slot_Tk, token_N;  // i32
  Tensor chosen_GE, count_E;                    // i32
  std::int64_t rows = 0;                        // kept copies of this rank

  void lay(Arena& arena, const MoeDeck& moe, DType compute, std::int64_t tokens, std::int64_t groups,
           std::int64_t width);
};

/// Shared by the layers of a stack, valid within one forward or backward.
struct RouterWork {
  Tensor logits_TE, dp_GE, dx_TD;  // A
  std::vector<std::int64_t> capacity;

  void lay(Arena& arena, const MoeDeck& moe, DType compute, std::int64_t tokens, std::int64_t groups,
           std::int64_t width);
};

/// Routes x_TD (C): fills `saved`, adds to `statistics`.
void route_forward(const LayerContext&, RouterActivations& saved, RouterWork& work, const Tensor& x_TD, int router,
                   const RoutingGroups& groups, MoeLayerStatistics& statistics);

/// dx_TD (C, written) = gradient by the router's input through task weights (dweight_Tk), balance and z losses; adds to
/// the gradient of the router matrix. `layers` sparse layers share the auxiliary losses (mean over layers; T5X).
void route_backward(const LayerContext&, const Tensor& dx_TD, RouterWork& work, const Tensor& dweight_Tk,
                    const Tensor& x_TD, int router, const RouterActivations& saved, const RoutingGroups& groups,
                    std::int64_t layers);

}  // namespace flanmoe
