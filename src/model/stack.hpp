// The encoder or the decoder: embedding, layers, final norm; forward and backward as flat lists of calls. Layers of
// encoder-decoder models are in stack.cpp, those of decoder-only models in parallel_block.cpp.
#pragma once

#include <vector>

#include "model/attention_layer.hpp"
#include "model/model.hpp"
#include "moe/moe_layer.hpp"

namespace flanmoe {

struct LayerActivations {
  // A: the residual stream at the entry of each sublayer; decoder-only models have x_self only
  Tensor x_self_TD, x_cross_TD, x_ffn_TD;
  AttentionActivations self, cross;
  Tensor ffn_rstd_T;  // A; not in decoder-only models, nor is ffn_y
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
  Tensor bias_HP;       // A: relative bias by offset; encoder-decoder models
  Tensor rotary_PK;     // A: table of rotary positions; decoder-only models
};

/// Decoding with a decoder-only model: the caches of its layers (C), the rows of them that new tokens go to, and which
/// new tokens attend to which rows.
struct CachedKeys {
  std::vector<Tensor> k_CQ, v_CQ;
  Tensor slot_T;
  AttentionSegments segments;
};

/// What was looked up in the embedding by both stacks, where its gradient is a sum over leaves: the tokens of a leaf,
/// the decoder's first.
struct LookupWork {
  Tensor dx_TD;  // A
  Tensor ids_T;  // i32
  std::vector<std::int64_t> leaves;

  void lay(Arena& arena, DType accumulate, std::int64_t tokens, std::int64_t width, std::int64_t most_leaves);
  /// Takes the gradient by the embeddings of one side, which stands in front of the other in every leaf, or behind it.
  void keep(const LayerContext&, const Tensor& dx_TD, const Side& side, const Side& other, bool behind);
};

/// Memory that no layer needs for long; shared by both stacks.
struct StackWork {
  SublayerWork sublayer;
  FeedForwardWork dense;
  MoeWork moe;
  Tensor dx_TD;       // A: gradient of the residual stream
  Tensor dsource_TD;  // A: gradient of the encoder's output, summed over the decoder's layers
  Tensor dout_TD;     // C: gradient of a stack's output
  Tensor dbias_HP;    // A; one matrix a leaf
  LookupWork lookups;
};

/// How far a backward pass has come in the buckets of gradients.
class GradientBuckets {
 public:
  GradientBuckets(const LayerContext& c, const BucketListener& completed) : c_(c), completed_(completed) {}
  /// The pass comes to this bucket, or to the end (ParameterStore::buckets()): those before it are complete, and what
  /// nothing contributed to in them is zero.
  void complete_before(std::int64_t bucket);
  void complete_before_that_of(int parameter) { complete_before(c_.store.specs()[std::size_t(parameter)].bucket); }

 private:
  const LayerContext& c_;
  const BucketListener& completed_;
  std::int64_t next_ = 0;
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
  void lay_work(Arena& arena, const TransferKernels& transfer, StackWork& work, DType compute,
                const BatchLimits& limits, bool training, std::int64_t expert_ranks) const;

  /// Runs the stack; the decoder of an encoder-decoder model attends to `encoder`, that of a decoder-only model to
  /// `cached` keys if given. Returns the output (C), valid until the next forward.
  Tensor forward(const LayerContext&, StackWork& work, const Side& side, const Stack* encoder, const Side* encoder_side,
                 StepStatistics& statistics, const CachedKeys* cached = nullptr);
  /// work.dout_TD holds the gradient of the output. The decoder adds to work.dsource_TD where the encoder trains. On
  /// return work.dx_TD holds the gradient by the embeddings.
  void backward(const LayerContext&, StackWork& work, const Side& side, const Stack* encoder, const Side* encoder_side,
                GradientBuckets& buckets);

  /// The feed-forward sublayer of layer l, dense or sparse; used by decoding too.
  void feed_forward_sublayer(const LayerContext&, const Tensor& x_out_TD, StackWork& work, const Side& side,
                             std::size_t l, StepStatistics& statistics);
  void embed(const LayerContext&, const Side& side);
  Tensor finish(const LayerContext&, const Side& side);
  /// Lays out what attention knows of positions: relative biases, or the table of rotary positions. forward() does it
  /// unless it continues from cached keys.
  void expand_positions(const LayerContext&);

  /// Whether anything that the gradient of this stack's output reaches is trained; if not, there is nothing to do
  /// backwards.
  bool trains(const ParameterStore& store) const;
  const StackTensors<int>& tensors() const { return tensors_; }
  StackActivations& activations() { return activations_; }
  const StackActivations& activations() const { return activations_; }
  AttentionShape self_shape() const;
  AttentionShape cross_shape() const;

 private:
  /// Numbers of the dropout sites inside a layer; each layer has kSitesPerLayer of them.
  enum Site : std::uint32_t { kSelf = 0, kCross = 2, kHidden = 4, kFeedForward = 5, kExtraHidden = 6, kExtra = 7 };
  static constexpr std::uint32_t kSitesPerLayer = 8;

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
  /// part_TD (C) = feed-forward of y_TD (C), dense or sparse, and back: dy_TD (C) from dpart_TD (C).
  void feed_forward_part(const LayerContext&, const Tensor& part_TD, StackWork& work, const Tensor& y_TD,
                         const Side& side, std::size_t l, StepStatistics& statistics);
  void feed_forward_part_backward(const LayerContext&, const Tensor& dy_TD, StackWork& work, const Tensor& dpart_TD,
                                  const Tensor& y_TD, const Side& side, std::size_t l);
  /// The layer of decoder-only models, and back: x_out (may be x) = x + attention(norm(x)) + feed_forward(norm(x)), and
  /// an extra dense sublayer behind a sparse block where the deck has one.
  AttentionLayer parallel_attention(const Side& side, std::size_t l, const CachedKeys* cached) const;
  void parallel_layer(const LayerContext&, const Tensor& x_out_TD, StackWork& work, const Side& side, std::size_t l,
                      StepStatistics& statistics, const CachedKeys* cached);
  void parallel_layer_backward(const LayerContext&, StackWork& work, const Side& side, std::size_t l);
  void parallel_block(const LayerContext&, const Tensor& x_out_TD, StackWork& work, const Side& side, std::size_t l,
                      StepStatistics& statistics, const CachedKeys* cached);
  void parallel_block_backward(const LayerContext&, StackWork& work, const Side& side, std::size_t l);
  bool parallel() const { return deck_.model.decoder_only(); }
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
