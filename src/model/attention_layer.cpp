#include "model/attention_layer.hpp"

#include "base/timer.hpp"
#include "moe/leaves.hpp"

namespace flanmoe {
namespace {

/// Dropout of attention probabilities with one mask per (row, key/value head, key), shared over the queries and the
/// heads that share the key: the same as dropping rows of v head by head.
void drop_values(const LayerContext& c, const Tensor& v_TQ, const AttentionLayer& layer) {
  const DropoutMask mask =
      c.mask(c.deck.model.dropout, layer.site, layer.keys->row_T, layer.keys->position_T, c.deck.model.head_width);
  if (mask.rate > 0.0F) c.k.dropout.apply(c.context, v_TQ, v_TQ, mask);
}

/// Segments [first, last).
AttentionSegments some_segments(const AttentionSegments& all, std::int64_t first, std::int64_t last) {
  const auto some = [=](std::span<const std::int32_t> list) {
    return list.empty() ? list : list.subspan(std::size_t(first), std::size_t(last - first));
  };
  return {some(all.query_begin), some(all.query_count), some(all.key_begin), some(all.key_count), some(all.prefix)};
}

}  // namespace

void norm_backward(const LayerContext& c, const Tensor& dx_TD, int norm_D, const Tensor& dy_TD, const Tensor& x_TD,
                   const Tensor& rstd_T, const Side& side) {
  const Tensor scale_D = c.weight(norm_D);
  const Tensor dscale_D = c.gradient(norm_D);
  if (dscale_D.absent()) {
    c.norm().backward(c.context, dx_TD, {}, dy_TD, x_TD, rstd_T, scale_D);
    return;
  }
  add_small_gradient(c, dscale_D, leaf_count(side.leaf_token), [&](std::int64_t leaf, const Tensor& sum) {
    const std::int64_t first = side.leaf_token[std::size_t(leaf)];
    const std::int64_t count = side.leaf_token[std::size_t(leaf) + 1] - first;
    const auto rows = [=](const Tensor& t) { return t.slice_rows(first, count); };
    c.norm().backward(c.context, rows(dx_TD), sum, rows(dy_TD), rows(x_TD), rows(rstd_T), scale_D);
  });
}

void AttentionActivations::lay(Arena& arena, const ModelDeck& model, DType compute, std::int64_t tokens,
                               std::int64_t key_tokens) {
  const DType a = accumulate_dtype(compute);
  const std::int64_t q = model.heads * model.head_width;
  const std::int64_t kv = model.key_heads() * model.head_width;
  rstd_T = arena.allocate(a, tokens, 1);
  y_TD = arena.allocate(compute, tokens, model.width);
  q_TQ = arena.allocate(compute, tokens, q);
  out_TQ = arena.allocate(compute, tokens, q);
  k_TQ = arena.allocate(compute, key_tokens, kv);
  v_TQ = arena.allocate(compute, key_tokens, kv);
  logsumexp_TH = arena.allocate(a, tokens, model.heads);
}

void SublayerWork::lay(Arena& arena, const ModelDeck& model, DType compute, std::int64_t tokens) {
  const std::int64_t q = model.heads * model.head_width;
  part_TD = arena.allocate(compute, tokens, model.width);
  dy_TD = arena.allocate(compute, tokens, model.width);
  dsum_TD = arena.allocate(accumulate_dtype(compute), tokens, model.width);
  const std::int64_t kv = model.key_heads() * model.head_width;
  for (Tensor* t : {&dout_TQ, &dq_TQ}) *t = arena.allocate(compute, tokens, q);
  for (Tensor* t : {&dk_TQ, &dv_TQ}) *t = arena.allocate(compute, tokens, kv);
}

void add_to_residual(const LayerContext& c, const Tensor& x_out_TD, const Tensor& x_TD, const Tensor& part_TD,
                     const Side& side, std::uint32_t site) {
  if (x_out_TD.data != x_TD.data) c.k.elementwise.convert(c.context, x_out_TD, x_TD);
  c.k.dropout.add(c.context, x_out_TD, part_TD, feature_mask(c, side, site));
}

Tensor residual_gradient(const LayerContext& c, const Tensor& part_TD, const Tensor& dx_TD, const Side& side,
                         std::uint32_t site) {
  const DropoutMask mask = feature_mask(c, side, site);
  if (mask.rate == 0.0F && !c.mixed()) return dx_TD;
  c.k.elementwise.convert(c.context, part_TD, dx_TD);
  if (mask.rate > 0.0F) c.k.dropout.apply(c.context, part_TD, part_TD, mask);
  return part_TD;
}

void attend(const LayerContext& c, const Tensor& part_TD, AttentionActivations& saved, const Tensor& y_TD,
            const AttentionLayer& layer) {
  const std::int64_t tokens = layer.queries->tokens;
  const std::int64_t key_tokens = layer.keys->tokens;
  const Tensor q_TQ = first_rows(saved.q_TQ, tokens);
  const Tensor k_TQ = first_rows(saved.k_TQ, key_tokens);
  const Tensor v_TQ = first_rows(saved.v_TQ, key_tokens);
  const Tensor out_TQ = first_rows(saved.out_TQ, tokens);
  // 1. Project.
  const Tensor source_TD = layer.source_TD.absent() ? y_TD : layer.source_TD;
  c.k.matmul.product(c.context, q_TQ, y_TD, Transpose::no, c.weight(layer.weights.query_DQ), Transpose::no, 0.0F);
  c.k.matmul.product(c.context, k_TQ, source_TD, Transpose::no, c.weight(layer.weights.key_DQ), Transpose::no, 0.0F);
  c.k.matmul.product(c.context, v_TQ, source_TD, Transpose::no, c.weight(layer.weights.value_DQ), Transpose::no, 0.0F);
  drop_values(c, v_TQ, layer);
  if (!layer.rotary_PK.absent()) {
    c.k.rotary.forward(c.context, q_TQ, layer.queries->segment_place_T, layer.rotary_PK);
    c.k.rotary.forward(c.context, k_TQ, layer.keys->segment_place_T, layer.rotary_PK);
  }
  const bool cached = !layer.cached_k_CQ.absent();
  if (cached) {
    c.k.permute.scatter(c.context, layer.cached_k_CQ, k_TQ, layer.slot_T);
    c.k.permute.scatter(c.context, layer.cached_v_CQ, v_TQ, layer.slot_T);
  }
  // 2. Attend.
  c.k.attention.forward(c.context, out_TQ, first_rows(saved.logsumexp_TH, tokens), q_TQ,
                        cached ? layer.cached_k_CQ : k_TQ, cached ? layer.cached_v_CQ : v_TQ, layer.bias_HP,
                        *layer.segments, layer.shape);
  // 3. Project back onto the residual stream.
  c.k.matmul.product(c.context, part_TD, out_TQ, Transpose::no, c.weight(layer.weights.output_QD), Transpose::no, 0.0F);
}

void attention_sublayer(const LayerContext& c, const Tensor& x_out_TD, AttentionActivations& saved, SublayerWork& work,
                        const Tensor& x_TD, const AttentionLayer& layer) {
  const PartScope part(Part::attention);
  const std::int64_t tokens = layer.queries->tokens;
  const Tensor y_TD = first_rows(saved.y_TD, tokens);
  c.norm().forward(c.context, y_TD, first_rows(saved.rstd_T, tokens), x_TD, c.weight(layer.weights.norm_D),
                   float(c.deck.model.norm_epsilon));
  const Tensor part_TD = first_rows(work.part_TD, tokens);
  attend(c, part_TD, saved, y_TD, layer);
  add_to_residual(c, x_out_TD, x_TD, part_TD, *layer.queries, layer.site + 1);
}

void attend_backward(const LayerContext& c, const Tensor& dsum_TD, const Tensor& dsource_TD, const Tensor& dbias_HP,
                     SublayerWork& work, const Tensor& dpart_TD, const Tensor& y_TD, const AttentionActivations& saved,
                     const AttentionLayer& layer) {
  const std::int64_t tokens = layer.queries->tokens;
  const std::int64_t key_tokens = layer.keys->tokens;
  const AttentionTensors<int>& w = layer.weights;
  const Tensor out_TQ = first_rows(saved.out_TQ, tokens);
  const Tensor source_TD = layer.source_TD.absent() ? y_TD : layer.source_TD;
  const Tensor dout_TQ = first_rows(work.dout_TQ, tokens);
  const Tensor dq_TQ = first_rows(work.dq_TQ, tokens);
  const Tensor dk_TQ = first_rows(work.dk_TQ, key_tokens);
  const Tensor dv_TQ = first_rows(work.dv_TQ, key_tokens);
  // 3. Output projection.
  add_weight_gradient(c, w.output_QD, out_TQ, dpart_TD, layer.queries->leaf_token);
  c.k.matmul.product(c.context, dout_TQ, dpart_TD, Transpose::no, c.weight(w.output_QD), Transpose::yes, 0.0F);
  // 2. Attention.
  const auto backward = [&](const Tensor& dbias, const AttentionSegments& segments) {
    c.k.attention.backward(c.context, dq_TQ, dk_TQ, dv_TQ, dbias, dout_TQ, first_rows(saved.q_TQ, tokens),
                           first_rows(saved.k_TQ, key_tokens), first_rows(saved.v_TQ, key_tokens), layer.bias_HP,
                           out_TQ, first_rows(saved.logsumexp_TH, tokens), segments, layer.shape);
  };
  if (dbias_HP.absent()) {
    backward({}, *layer.segments);
  } else {
    const std::vector<std::int64_t>& first = layer.queries->leaf_segment;
    for (std::int64_t leaf = 0; leaf < dbias_HP.batch; ++leaf) {
      const auto l = std::size_t(leaf);
      backward(dbias_HP.matrix(leaf), some_segments(*layer.segments, first[l], first[l + 1]));
    }
  }
  if (!layer.rotary_PK.absent()) {
    c.k.rotary.backward(c.context, dq_TQ, layer.queries->segment_place_T, layer.rotary_PK);
    c.k.rotary.backward(c.context, dk_TQ, layer.keys->segment_place_T, layer.rotary_PK);
  }
  drop_values(c, dv_TQ, layer);
  // 1. Projections: to the input of the sublayer, and in cross attention to the encoder's output.
  add_weight_gradient(c, w.query_DQ, y_TD, dq_TQ, layer.queries->leaf_token);
  add_weight_gradient(c, w.key_DQ, source_TD, dk_TQ, layer.keys->leaf_token);
  add_weight_gradient(c, w.value_DQ, source_TD, dv_TQ, layer.keys->leaf_token);
  c.k.matmul.product(c.context, dsum_TD, dq_TQ, Transpose::no, c.weight(w.query_DQ), Transpose::yes, 0.0F);
  const Tensor dtarget_TD = layer.source_TD.absent() ? dsum_TD : dsource_TD;
  if (dtarget_TD.absent()) return;  // nothing in the encoder is trained
  c.k.matmul.product(c.context, dtarget_TD, dk_TQ, Transpose::no, c.weight(w.key_DQ), Transpose::yes, 1.0F);
  c.k.matmul.product(c.context, dtarget_TD, dv_TQ, Transpose::no, c.weight(w.value_DQ), Transpose::yes, 1.0F);
}

void attention_sublayer_backward(const LayerContext& c, const Tensor& dx_TD, const Tensor& dsource_TD,
                                 const Tensor& dbias_HP, SublayerWork& work, const Tensor& x_TD,
                                 const AttentionActivations& saved, const AttentionLayer& layer) {
  const PartScope part(Part::attention);
  const std::int64_t tokens = layer.queries->tokens;
  const AttentionTensors<int>& w = layer.weights;
  const Tensor dpart_TD = residual_gradient(c, first_rows(work.part_TD, tokens), dx_TD, *layer.queries, layer.site + 1);
  const Tensor dsum_TD = first_rows(work.dsum_TD, tokens);
  attend_backward(c, dsum_TD, dsource_TD, dbias_HP, work, dpart_TD, first_rows(saved.y_TD, tokens), saved, layer);
  Tensor dy_TD = dsum_TD;
  if (c.mixed()) {
    dy_TD = first_rows(work.dy_TD, tokens);
    c.k.elementwise.convert(c.context, dy_TD, dsum_TD);
  }
  norm_backward(c, dx_TD, w.norm_D, dy_TD, x_TD, first_rows(saved.rstd_T, tokens), *layer.queries);
}

}  // namespace flanmoe
