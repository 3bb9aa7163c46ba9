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
  Tensor q_TQ, out_TQ;  // C
  Tensor k_TQ, v_TQ;    // C, of the key side; v after dropout of the attention probabilities
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

/// One attention sublayer. `source_TD` (C) is where keys and values come from: the normalised input itself (absent
/// tensor) in self attention, the encoder's output in cross attention.
struct AttentionLayer {
  AttentionTensors<int> weights;
  AttentionShape shape;
  const AttentionSegments* segments = nullptr;
  const Side* queries = nullptr;
  const Side* keys = nullptr;
  Tensor source_TD;
  Tensor bias_HP;          // absent in cross attention
  std::uint32_t site = 0;  // dropout: site for probabilities, site+1 for the output
};

/// x_out_TD = x_TD + dropout(attention(norm(x_TD))); both A, different buffers.
void attention_sublayer(const LayerContext&, const Tensor& x_out_TD, AttentionActivations& saved, SublayerWork& work,
                        const Tensor& x_TD, const AttentionLayer& layer);

/// dx_TD (A): on entry the gradient by x_out, on return by x. dsource_TD (A) += in cross attention; dbias_HP (A) +=.
void attention_sublayer_backward(const LayerContext&, const Tensor& dx_TD, const Tensor& dsource_TD,
                                 const Tensor& dbias_HP, SublayerWork& work, const Tensor& x_TD,
                                 const AttentionActivations& saved, const AttentionLayer& layer);

/// x_out_TD = x_TD + dropout(part_TD): the end of every sublayer.
void add_to_residual(const LayerContext&, const Tensor& x_out_TD, const Tensor& x_TD, const Tensor& part_TD,
                     const Side& side, std::uint32_t site);
/// The gradient of a sublayer's output in C: dropout of dx_TD (A). Returns dx_TD itself where nothing changes.
Tensor residual_gradient(const LayerContext&, const Tensor& part_TD, const Tensor& dx_TD, const Side& side,
                         std::uint32_t site);

}  // namespace flanmoe
