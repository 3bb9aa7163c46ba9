// The layer of decoder-only models: y = x + attention(norm(x)) + feed_forward(norm(x)), with one norm for both (PaLM,
// Chowdhery et al. 2022).
#include <array>

#include "base/timer.hpp"
#include "model/stack.hpp"

namespace flanmoe {

AttentionLayer Stack::parallel_attention(const Side& side, std::size_t l, const CachedKeys* cached) const {
  AttentionLayer layer{tensors_.layers[l].self, self_shape(), &side.self, &side, &side, {}, {}, site(l, kSelf)};
  layer.rotary_PK = activations_.rotary_PK;
  if (cached == nullptr) return layer;
  layer.segments = &cached->segments;
  layer.cached_k_CQ = cached->k_CQ[l];
  layer.cached_v_CQ = cached->v_CQ[l];
  layer.slot_T = cached->slot_T;
  return layer;
}

void Stack::feed_forward_part(const LayerContext& c, const Tensor& part_TD, StackWork& work, const Tensor& y_TD,
                              const Side& side, std::size_t l, StepStatistics& statistics) {
  LayerActivations& saved = activations_.layers[l];
  if (tensors_.layers[l].sparse) {
    const PartScope part(Part::experts);
    moe_forward(c, part_TD, saved.moe, work.moe, *dispatcher_, y_TD, moe_of(l), side.groups,
                statistics.moe[std::size_t(moe_index_[l])]);
    return;
  }
  const std::array<std::int64_t, 2> first{0, side.tokens};
  feed_forward(
      c, part_TD, saved.dense, y_TD,
      {tensors_.layers[l].dense, first, side.leaf_token, feature_mask(c, side, site(l, kHidden)), Part::dense_ffn});
}

void Stack::feed_forward_part_backward(const LayerContext& c, const Tensor& dy_TD, StackWork& work,
                                       const Tensor& dpart_TD, const Tensor& y_TD, const Side& side, std::size_t l) {
  const LayerActivations& saved = activations_.layers[l];
  if (tensors_.layers[l].sparse) {
    const PartScope part(Part::experts);
    moe_backward(c, dy_TD, work.moe, *dispatcher_, dpart_TD, y_TD, moe_of(l), saved.moe, side.groups);
    return;
  }
  const std::array<std::int64_t, 2> first{0, side.tokens};
  feed_forward_backward(
      c, dy_TD, work.dense, dpart_TD, y_TD, saved.dense,
      {tensors_.layers[l].dense, first, side.leaf_token, feature_mask(c, side, site(l, kHidden)), Part::dense_ffn});
}

void Stack::parallel_layer(const LayerContext& c, const Tensor& x_out_TD, StackWork& work, const Side& side,
                           std::size_t l, StepStatistics& statistics, const CachedKeys* cached) {
  const bool extra = tensors_.layers[l].sparse && deck_.moe.extra_feed_forward;
  const Tensor x_block_TD = extra ? first_rows(activations_.layers[l].x_extra_TD, side.tokens) : x_out_TD;
  parallel_block(c, x_block_TD, work, side, l, statistics, cached);
  if (extra) dense_sublayer(c, x_out_TD, work, side, dense_of(l));
}

void Stack::parallel_layer_backward(const LayerContext& c, StackWork& work, const Side& side, std::size_t l) {
  if (tensors_.layers[l].sparse && deck_.moe.extra_feed_forward) dense_sublayer_backward(c, work, side, dense_of(l));
  parallel_block_backward(c, work, side, l);
}

void Stack::parallel_block(const LayerContext& c, const Tensor& x_out_TD, StackWork& work, const Side& side,
                           std::size_t l, StepStatistics& statistics, const CachedKeys* cached) {
  LayerActivations& saved = activations_.layers[l];
  const LayerTensors<int>& tensors = tensors_.layers[l];
  const auto rows = [&](const Tensor& t) { return first_rows(t, side.tokens); };
  const Tensor x_TD = rows(saved.x_self_TD);
  const Tensor y_TD = rows(saved.self.y_TD);
  const Tensor part_TD = rows(work.sublayer.part_TD);
  const AttentionLayer attention = parallel_attention(side, l, cached);
  {
    const PartScope part(Part::attention);
    c.norm().forward(c.context, y_TD, rows(saved.self.rstd_T), x_TD, c.weight(tensors.self.norm_D),
                     float(deck_.model.norm_epsilon));
    attend(c, part_TD, saved.self, y_TD, attention);
    add_to_residual(c, x_out_TD, x_TD, part_TD, side, attention.site + 1);
  }
  feed_forward_part(c, part_TD, work, y_TD, side, l, statistics);
  add_to_residual(c, x_out_TD, x_out_TD, part_TD, side, site(l, kFeedForward));
}

void Stack::parallel_block_backward(const LayerContext& c, StackWork& work, const Side& side, std::size_t l) {
  const LayerActivations& saved = activations_.layers[l];
  const LayerTensors<int>& tensors = tensors_.layers[l];
  const auto rows = [&](const Tensor& t) { return first_rows(t, side.tokens); };
  const Tensor dx_TD = rows(work.dx_TD);
  const Tensor y_TD = rows(saved.self.y_TD);
  const Tensor part_TD = rows(work.sublayer.part_TD);
  const Tensor dffn_TD = rows(work.sublayer.dy_TD);
  const Tensor dsum_TD = rows(work.sublayer.dsum_TD);
  const AttentionLayer attention = parallel_attention(side, l, nullptr);
  // Both parts have the gradient of the sum, each with its own dropout.
  feed_forward_part_backward(c, dffn_TD, work, residual_gradient(c, part_TD, dx_TD, side, site(l, kFeedForward)), y_TD,
                             side, l);
  const PartScope part(Part::attention);
  attend_backward(c, dsum_TD, {}, {}, work.sublayer, residual_gradient(c, part_TD, dx_TD, side, attention.site + 1),
                  y_TD, saved.self, attention);
  c.k.elementwise.add(c.context, dsum_TD, dffn_TD);
  Tensor dy_TD = dsum_TD;
  if (c.mixed()) {
    dy_TD = dffn_TD;
    c.k.elementwise.convert(c.context, dy_TD, dsum_TD);
  }
  norm_backward(c, dx_TD, tensors.self.norm_D, dy_TD, rows(saved.x_self_TD), rows(saved.self.rstd_T), side);
}

}  // namespace flanmoe
