// The attention sublayer: RMSNorm, projections, attention, output projection onto the residual stream.
#pragma once

#include "model/side.hpp"
#include "model/tensors.hpp"
#include "moe/layer_context.hpp"

namespace flanmoe {

/// Saved by the forward; buffers for the largest microbatch. Tq query tokens, Tk key tokens.
struct AttentionActivations {
  Tensor rstd_T;        // A
  Tensor y_TD;          // C: normalised input
  Tensor q_TQ, out_TQ;  // C; q as attention reads it: turned by rotary positions where there are some
  Tensor k_TQ, v_TQ;    // C, of the key side; likewise, v after dropout of the attention probabilities
  Tensor logsumexp_TH;  // A

  void lay(Arena& arena, const ModelDeck& model, DType compute, std::int64_t tokens, std::int64_t key_tokens);
};

/// Temporary memory, shared by all sublayers of both stacks; T is the larger side.
struct SublayerWork {
  Tensor part_TD;                       // C: what a sublayer adds to the residual, or the gradient of that
  Tensor dy_TD;                         // C
  Tensor dsum_TD;                       // A: dy before it is rounded to C
  Tensor dout_TQ, dq_TQ, dk_TQ, dv_TQ;  // C

  void lay(Arena& arena, const ModelDeck& model, DType compute, std::int64_t tokens);
};

/// dx_TD (A) += , and the gradient of the norm's scale by the tokens of `side`, leaf by leaf.
void norm_backward(const LayerContext&, const Tensor& dx_TD, int norm_D, const Tensor& dy_TD, const Tensor& x_TD,
                   const Tensor& rstd_T, const Side& side);

/// One attention sublayer. `source_TD` (C) is where keys and values come from: the normalised input itself (absent
/// tensor) in self attention, the encoder's output in cross attention.
struct AttentionLayer {
  AttentionTensors<int> weights;
  AttentionShape shape;
  const AttentionSegments* segments = nullptr;
  const Side* queries = nullptr;
  const Side* keys = nullptr;
  Tensor source_TD;
  Tensor bias_HP;          // absent in cross attention and in decoder-only models
  std::uint32_t site = 0;  // dropout: site for probabilities, site+1 for the output
  Tensor rotary_PK{};      // decoder-only models: table of rotary positions
  /// Decoding: keys and values of the new tokens go to rows slot_T of the cache, and attention reads the cache.
  Tensor cached_k_CQ{}, cached_v_CQ{}, slot_T{};
};

/// part_TD (C) = output(attention(query(y), key(source), value(source))), y_TD: C, normalised. `source_TD` is y_TD
/// where layer.source_TD is absent.
void attend(const LayerContext&, const Tensor& part_TD, AttentionActivations& saved, const Tensor& y_TD,
            const AttentionLayer& layer);
/// dsum_TD (A, written): the gradient by y from dpart_TD (C). dsource_TD (A) += in cross attention; dbias_HP (A; one
/// matrix a leaf) +=.
void attend_backward(const LayerContext&, const Tensor& dsum_TD, const Tensor& dsource_TD, const Tensor& dbias_HP,
                     SublayerWork& work, const Tensor& dpart_TD, const Tensor& y_TD, const AttentionActivations& saved,
                     const AttentionLayer& layer);

/// x_out_TD = x_TD + dropout(attention(norm(x_TD))); both A, different buffers.
void attention_sublayer(const LayerContext&, const Tensor& x_out_TD, AttentionActivations& saved, SublayerWork& work,
                        const Tensor& x_TD, const AttentionLayer& layer);

/// dx_TD (A): on entry the gradient by x_out, on return by x. dsource_TD (A) += in cross attention; dbias_HP (A) +=.
void attention_sublayer_backward(const LayerContext&, const Tensor& dx_TD, const Tensor& dsource_TD,
                                 const Tensor& dbias_HP, SublayerWork& work, const Tensor& x_TD,
                                 const AttentionActivations& saved, const AttentionLayer& layer);

/// x_out_TD = x_TD + dropout(part_TD): the end of every sublayer. x_out may be x.
void add_to_residual(const LayerContext&, const Tensor& x_out_TD, const Tensor& x_TD, const Tensor& part_TD,
                     const Side& side, std::uint32_t site);
/// The gradient of a sublayer's output in C: dropout of dx_TD (A). Returns dx_TD itself where nothing changes.
Tensor residual_gradient(const LayerContext&, const Tensor& part_TD, const Tensor& dx_TD, const Side& side,
                         std::uint32_t site);

}  // namespace flanmoe
