// The encoder or the decoder: embedding, layers, final norm; forward and backward as flat lists of calls.
#pragma once

#include <vector>

#include "model/attention_layer.hpp"
#include "model/model.hpp"
#include "moe/moe_layer.hpp"

namespace flanmoe {

struct LayerActivations {
  Tensor x_self_TD, x_cross_TD, x_ffn_TD;  // A: the residual stream at the entry of each sublayer
  AttentionActivations self, cross;
  Tensor ffn_rstd_T;  // A
  Tensor ffn_y_TD;    // C
  FeedForwardActivations dense;
  MoeActivations moe;
  Tensor x_extra_TD, extra_rstd_T;  // A: of the dense sublayer behind a sparse one, which uses `dense`
  Tensor extra_y_TD;                // C
};

struct StackActivations {
  std::vector<LayerActivations> layers;
  Tensor x_final_TD;    // A: the residual stream behind the last layer
  Tensor final_rstd_T;  // A
  Tensor out_TD;        // C: the stack's output
  Tensor bias_HP;       // A: relative bias by offset
};

/// Memory that no layer needs for long; shared by both stacks.
struct StackWork {
  SublayerWork sublayer;
  FeedForwardWork dense;
  MoeWork moe;
  Tensor dx_TD;       // A: gradient of the residual stream
  Tensor dsource_TD;  // A: gradient of the encoder's output, summed over the decoder's layers
  Tensor dout_TD;     // C: gradient of a stack's output
  Tensor dbias_HP;    // A
};

/// A dense feed-forward sublayer: where its tensors are and what it keeps.
struct DenseSublayer {
  int norm_D;
  FeedForwardTensors<int> weights;
  Tensor x_TD, rstd_T, y_TD;  // rows of the largest microbatch
  FeedForwardActivations* saved;
  std::uint32_t hidden_site, output_site;
};

/// One stack of the model and what it is connected to. Sizes are limits; `side` says how much of them is in use.
class Stack {
 public:
  Stack(const Deck& deck, bool encoder, StackTensors<int> tensors, int embedding, Dispatcher* dispatcher,
        std::int64_t first_moe_layer, std::int64_t moe_layers);

  /// In evaluation all layers share one set of activations.
  void lay(Arena& arena, DType compute, const BatchLimits& limits, bool training, std::int64_t expert_ranks);
  void lay_work(Arena& arena, StackWork& work, DType compute, const BatchLimits& limits, bool training,
                std::int64_t expert_ranks) const;

  /// Runs the stack; the decoder attends to `encoder`. Returns the output (C), valid until the next forward.
  Tensor forward(const LayerContext&, StackWork& work, const Side& side, const Stack* encoder, const Side* encoder_side,
                 StepStatistics& statistics);
  /// work.dout_TD holds the gradient of the output. The decoder adds to work.dsource_TD.
  void backward(const LayerContext&, StackWork& work, const Side& side, const Stack* encoder, const Side* encoder_side);

  /// The feed-forward sublayer of layer l, dense or sparse; used by decoding too.
  void feed_forward_sublayer(const LayerContext&, const Tensor& x_out_TD, StackWork& work, const Side& side,
                             std::size_t l, StepStatistics& statistics);
  void embed(const LayerContext&, const Side& side);
  Tensor finish(const LayerContext&, const Side& side);
  void expand_bias(const LayerContext&);

  const StackTensors<int>& tensors() const { return tensors_; }
  StackActivations& activations() { return activations_; }
  const StackActivations& activations() const { return activations_; }
  AttentionShape self_shape() const;
  AttentionShape cross_shape() const;

 private:
  AttentionLayer self_attention(const Side& side, std::size_t l) const;
  AttentionLayer cross_attention(const Side& side, const Stack& encoder, const Side& encoder_side, std::size_t l) const;
  void sparse_sublayer(const LayerContext&, const Tensor& x_out_TD, StackWork& work, const Side& side, std::size_t l,
                       StepStatistics& statistics);
  void dense_sublayer(const LayerContext&, const Tensor& x_out_TD, StackWork& work, const Side& side,
                      const DenseSublayer& layer);
  void sparse_sublayer_backward(const LayerContext&, StackWork& work, const Side& side, std::size_t l);
  void dense_sublayer_backward(const LayerContext&, StackWork& work, const Side& side, const DenseSublayer& layer);
  DenseSublayer dense_of(std::size_t l);  // the dense sublayer of layer l: its own, or the extra one
  MoeLayer moe_of(std::size_t l) const;
  void feed_forward_backward_sublayer(const LayerContext&, StackWork& work, const Side& side, std::size_t l);
  const Tensor& after_self(std::size_t l) const;  // where self attention of layer l writes
  const Tensor& after_ffn(std::size_t l) const;
  std::uint32_t site(std::size_t l, std::uint32_t which) const;
  DropoutMask embedding_mask(const LayerContext& c, const Side& side) const;
  DropoutMask final_mask(const LayerContext& c, const Side& side) const;
  std::int64_t groups_limit(const BatchLimits& limits) const { return limits.rows; }
  std::int64_t tokens_limit(const BatchLimits& limits) const {
    return encoder_ ? limits.encoder_tokens : limits.decoder_tokens;
  }
  bool has_sparse() const;
  /// Rows of the sparse layers of one stack of this deck.
  RowLimits moe_limits(bool encoder, const BatchLimits& limits, bool training, std::int64_t expert_ranks) const;

  const Deck& deck_;
  bool encoder_;
  StackTensors<int> tensors_;
  int embedding_;
  Dispatcher* dispatcher_;
  std::int64_t moe_layers_;              // sparse layers of the model
  std::vector<std::int64_t> moe_index_;  // per layer: index in StepStatistics::moe, -1 when dense
  StackActivations activations_;
};

}  // namespace flanmoe
