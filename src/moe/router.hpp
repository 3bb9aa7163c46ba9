// Who goes where, with which weight: the router of a sparse layer (paper facts 4.3 to 4.7). Always in A.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "moe/feed_forward_tensors.hpp"
#include "moe/layer_context.hpp"
#include "moe/routing.hpp"

namespace flanmoe {

/// What one sparse layer did, summed over the tokens that this rank routed; additive over microbatches and ranks.
struct MoeLayerStatistics {
  std::string layer;           // "encoder/layer_01"
  std::vector<double> load_E;  // claims per expert before capacity; tokens taken where experts choose
  double tokens = 0;           // routed tokens
  double dropped = 0;          // claims that found no slot
  double unrouted = 0;         // tokens that no expert got
  double balance = 0, z = 0;   // this layer's balance and router z-loss, before coefficients
  double entropy = 0;          // sum over tokens of the entropy of p (nats)
};

/// The tokens of this rank as routing groups, and the sizes of the whole step that normalise the losses.
struct RoutingGroups {
  std::vector<std::int64_t> first_token;     // groups+1 offsets
  std::span<const std::int64_t> leaf_token;  // leaves+1 offsets; a leaf holds whole groups
  std::span<const std::int64_t> row_T;       // global row of each token
  std::span<const std::int32_t> position_T;  // position of each token in its row
  std::int64_t step_groups = 1;              // groups of the whole step, over all ranks
  std::int64_t step_tokens = 1;              // tokens of the whole step on this side
  std::int64_t count() const { return std::int64_t(first_token.size()) - 1; }
  std::int64_t tokens() const { return first_token.back(); }
};

/// The router of one sparse layer: its tensors, how it routes, the stream of its random numbers, and the number of
/// sparse layers among which the auxiliary losses are shared.
struct Router {
  int router_DE = 0;
  int bias_E = -1;  // added to p where choices are made; -1: none
  Routing routing;
  std::uint32_t site = 0;
  std::int64_t layers = 1;
};

/// Saved by route_forward() for combine and backward; buffers for the largest microbatch.
struct RouterActivations {
  Tensor p_TE, log_z_T;                         // A
  Tensor weight_Tk;                             // A; p_TE itself where experts choose
  Tensor choice_Tk, kept_Tk, slot_Tk, token_N;  // i32
  Tensor chosen_GE;                             // i32: claims before capacity
  Tensor balance_GE;                 // i32: choices that the balance loss counts; absent where experts choose
  Tensor count_E;                    // i32
  std::vector<std::int64_t> kept_E;  // the same for the host: kept copies of this rank by expert
  std::int64_t rows = 0;             // all of them

  void lay(Arena& arena, const MoeDeck& moe, const Routing& routing, DType compute, std::int64_t tokens,
           std::int64_t groups, std::int64_t copies);
};

/// Shared by the layers of a model, valid within one forward or backward.
struct RouterWork {
  Tensor logits_TE, dp_GE;  // A
  Tensor x_TD;        // A: the input as the router sees it, or its gradient; laid where that is not the input itself
  Tensor measure_LS;  // f64: RouterMeasures of each leaf
  std::vector<double> measured_LS;                  // the same for the host
  std::vector<std::int64_t> capacity, first_token;  // of each group; of the groups of a leaf

  void lay(Arena& arena, const MoeDeck& moe, DType compute, std::int64_t tokens, std::int64_t groups,
           std::int64_t leaves, std::int64_t width);
};

/// Routes x_TD (C): fills `saved`, adds to `statistics`. The host waits for the device once, for the numbers of rows.
void route_forward(const LayerContext&, RouterActivations& saved, RouterWork& work, const Tensor& x_TD,
                   const Router& router, const RoutingGroups& groups, MoeLayerStatistics& statistics);

/// dx_TD (C, written) = gradient by the router's input through task weights (dweight_Tk), balance and z losses; adds to
/// the gradient of the router matrix, and the claims of each expert to that of its bias (ParameterSpec::balance_rate).
void route_backward(const LayerContext&, const Tensor& dx_TD, RouterWork& work, const Tensor& dweight_Tk,
                    const Tensor& x_TD, const Router& router, const RouterActivations& saved,
                    const RoutingGroups& groups);

}  // namespace flanmoe
