// Grouped feed-forward: the experts of this rank, each on its own ragged rows. A dense feed-forward is one group.
#pragma once

#include <span>
#include <vector>

#include "base/timer.hpp"
#include "moe/feed_forward_tensors.hpp"
#include "moe/layer_context.hpp"

namespace flanmoe {

/// Saved by the forward for the backward; buffers for the largest microbatch.
struct FeedForwardActivations {
  Tensor gate_RF, up_RF, hidden_RF;  // C; relu lays hidden only
  Tensor scaled_RF;                  // C: hidden times the multiplicative bias, where the model has one

  void lay(Arena& arena, const ModelDeck& model, DType compute, std::int64_t rows, std::int64_t hidden);
};

/// Temporary memory of the backward, shared by all layers.
struct FeedForwardWork {
  Tensor dhidden_RF, dgate_RF, dpart_RD;  // C
  std::vector<Tensor> gradients;          // of one weight, per expert and source

  /// `gradients`: experts times sources.
  void lay(Arena& arena, const ModelDeck& model, DType compute, std::int64_t rows, std::int64_t gradients,
           std::int64_t hidden);
};

/// What a feed-forward is: its weights (indices into the store), the rows of each expert ([first[e], first[e+1])), the
/// dropout of the hidden activation, and the part of the step that its time counts for. It may be a part of a larger
/// one, with some of its experts.
struct FeedForward {
  FeedForwardTensors<int> weights;
  std::span<const std::int64_t> first;
  /// Rows of each expert and, inside it, of each source of its gradients (ParameterStore::sources) and of each leaf.
  std::span<const std::int64_t> leaf_first;
  DropoutMask dropout;
  Part part = Part::experts;
  std::int64_t first_expert = 0;  // of those of this rank
  std::int64_t first_row = 0;     // in what is saved and in temporary memory
};

/// y_RD (C) = (act(x_RD . gate, x_RD . up) * scale) . down, per expert; scale with model.multiplicative_bias. x_RD: C.
void feed_forward(const LayerContext&, const Tensor& y_RD, FeedForwardActivations& saved, const Tensor& x_RD,
                  const FeedForward& layer);

/// dx_RD (C) written; gradients of the weights written by the first contribution of a step, added to by later ones.
/// dy_RD: C.
void feed_forward_backward(const LayerContext&, const Tensor& dx_RD, FeedForwardWork& work, const Tensor& dy_RD,
                           const Tensor& x_RD, const FeedForwardActivations& saved, const FeedForward& layer);

/// The first half of feed_forward_backward, for all experts or for some after others, from expert 0 on: dx_RD, the
/// gradient of the scale, and in `work` what the second half needs.
void feed_forward_input_gradient(const LayerContext&, const Tensor& dx_RD, FeedForwardWork& work, const Tensor& dy_RD,
                                 const FeedForwardActivations& saved, const FeedForward& layer);
/// The second half, for all experts at once: the gradients of the matrices.
void feed_forward_weight_gradients(const LayerContext&, FeedForwardWork& work, const Tensor& dy_RD, const Tensor& x_RD,
                                   const FeedForwardActivations& saved, const FeedForward& layer);

}  // namespace flanmoe
