#include "model/stack.hpp"

#include <algorithm>
#include <array>
#include <cmath>

#include "base/timer.hpp"
#include "moe/leaves.hpp"

namespace flanmoe {
namespace {

constexpr std::uint32_t kDecoderSites = 1U << 16;
constexpr std::uint32_t kEmbeddingSite = 0xF000;
constexpr std::uint32_t kFinalSite = 0xF001;

std::array<std::int64_t, 2> one_group(std::int64_t rows) { return {0, rows}; }

}  // namespace

Stack::Stack(const Deck& deck, bool encoder, StackTensors<int> tensors, int embedding, Dispatcher* dispatcher,
             std::int64_t first_moe_layer, std::int64_t moe_layers)
    : deck_(deck),
      encoder_(encoder),
      tensors_(std::move(tensors)),
      embedding_(embedding),
      dispatcher_(dispatcher),
      moe_layers_(moe_layers) {
  for (const auto& layer : tensors_.layers) moe_index_.push_back(layer.sparse ? first_moe_layer++ : -1);
}

bool Stack::has_sparse() const {
  return std::any_of(tensors_.layers.begin(), tensors_.layers.end(), [](const auto& layer) { return layer.sparse; });
}

bool Stack::trains(const ParameterStore& store) const {
  const std::string prefix = encoder_ ? "encoder/" : "decoder/";
  return store.trained(embedding_) || std::any_of(store.specs().begin(), store.specs().end(), [&](const auto& spec) {
           return spec.trained && spec.name.starts_with(prefix);
         });
}

std::uint32_t Stack::site(std::size_t l, std::uint32_t which) const {
  return (encoder_ ? 0 : kDecoderSites) + kSitesPerLayer * std::uint32_t(l) + which;
}

DropoutMask Stack::embedding_mask(const LayerContext& c, const Side& side) const {
  return feature_mask(c, side, (encoder_ ? 0 : kDecoderSites) + kEmbeddingSite);
}

DropoutMask Stack::final_mask(const LayerContext& c, const Side& side) const {
  // T5X drops single elements behind the encoder's final norm and shares the mask over the length in the decoder.
  const bool shared = deck_.model.dropout_shared_over_length && !encoder_;
  return feature_mask(c, side, (encoder_ ? 0 : kDecoderSites) + kFinalSite, shared);
}

AttentionShape Stack::self_shape() const {
  const ModelDeck& model = deck_.model;
  const float scale = parallel() ? 1.0F / std::sqrt(float(model.head_width)) : 1.0F;
  return {int(model.heads), int(model.head_width), !encoder_, scale, int(model.kv_heads)};
}
AttentionShape Stack::cross_shape() const {
  const ModelDeck& model = deck_.model;
  return {int(model.heads), int(model.head_width), false, 1.0F, int(model.kv_heads)};
}

RowLimits Stack::moe_limits(bool encoder, const BatchLimits& limits, bool training, std::int64_t expert_ranks) const {
  return row_limits(deck_.moe, routing_of(deck_.moe, encoder), training, expert_ranks,
                    encoder ? limits.encoder_tokens : limits.decoder_tokens, groups_limit(limits));
}

void Stack::lay(Arena& arena, DType compute, const BatchLimits& limits, bool training, std::int64_t expert_ranks) {
  const DType a = accumulate_dtype(compute);
  const ModelDeck& model = deck_.model;
  const std::int64_t tokens = tokens_limit(limits);
  const Routing routing = routing_of(deck_.moe, encoder_);
  const RowLimits rows = moe_limits(encoder_, limits, training, expert_ranks);
  activations_.layers.assign(tensors_.layers.size(), {});
  const auto lay_layer = [&](LayerActivations& layer, bool dense, bool sparse) {
    layer.x_self_TD = arena.allocate(a, tokens, model.width);
    if (!parallel()) layer.x_ffn_TD = arena.allocate(a, tokens, model.width);
    layer.self.lay(arena, model, compute, tokens, tokens);
    if (!encoder_ && !parallel()) {
      layer.x_cross_TD = arena.allocate(a, tokens, model.width);
      layer.cross.lay(arena, model, compute, tokens, limits.encoder_tokens);
    }
    if (!parallel()) {
      layer.ffn_rstd_T = arena.allocate(a, tokens, 1);
      layer.ffn_y_TD = arena.allocate(compute, tokens, model.width);
    }
    const bool extra = sparse && deck_.moe.extra_feed_forward;
    if (dense || extra) layer.dense.lay(arena, model, compute, tokens, model.hidden);
    if (sparse)
      layer.moe.lay(arena, deck_, routing, compute, tokens, groups_limit(limits), limits.cut(), rows, expert_ranks);
    if (!extra) return;
    layer.x_extra_TD = arena.allocate(a, tokens, model.width);
    layer.extra_rstd_T = arena.allocate(a, tokens, 1);
    layer.extra_y_TD = arena.allocate(compute, tokens, model.width);
  };
  if (training) {
    for (std::size_t l = 0; l < tensors_.layers.size(); ++l) {
      lay_layer(activations_.layers[l], !tensors_.layers[l].sparse, tensors_.layers[l].sparse);
    }
  } else {
    LayerActivations shared;
    lay_layer(shared, true, has_sparse());
    std::fill(activations_.layers.begin(), activations_.layers.end(), shared);
  }
  activations_.x_final_TD = training ? arena.allocate(a, tokens, model.width) : activations_.layers[0].x_self_TD;
  activations_.final_rstd_T = arena.allocate(a, tokens, 1);
  activations_.out_TD = arena.allocate(compute, tokens, model.width);
  const std::int64_t longest = std::max<std::int64_t>(1, encoder_ ? limits.longest_input : limits.longest_target);
  if (parallel()) {
    activations_.rotary_PK = arena.allocate(a, longest, model.head_width);
  } else {
    activations_.bias_HP = arena.allocate(a, model.heads, 2 * longest - 1);
  }
}

void Stack::lay_work(Arena& arena, const TransferKernels& transfer, StackWork& work, DType compute,
                     const BatchLimits& limits, bool training, std::int64_t expert_ranks) const {
  const DType a = accumulate_dtype(compute);
  const ModelDeck& model = deck_.model;
  const std::int64_t tokens = std::max(limits.encoder_tokens, limits.decoder_tokens);
  work.sublayer.lay(arena, model, compute, tokens);
  if (training) work.dense.lay(arena, model, compute, tokens, 1, model.hidden);
  if (dispatcher_ != nullptr) {
    RowLimits most;
    std::int64_t columns = 0;
    for (const bool encoder : {true, false}) {
      const RowLimits rows = moe_limits(encoder, limits, training, expert_ranks);
      most = {std::max(most.copies, rows.copies), std::max(most.received, rows.received)};
      columns = std::max(columns, routing_of(deck_.moe, encoder).columns);
    }
    work.moe.lay(arena, deck_, columns, compute, tokens, groups_limit(limits), limits.cut(), most);
    dispatcher_->lay(arena, transfer, compute, most.received, model.width, limits.cut());
  }
  if (!training) return;
  const std::int64_t longest = std::max({std::int64_t{1}, limits.longest_input, limits.longest_target});
  work.dx_TD = arena.allocate(a, tokens, model.width);
  work.dout_TD = arena.allocate(compute, tokens, model.width);
  if (parallel()) return;
  work.dsource_TD = arena.allocate(a, limits.encoder_tokens, model.width);
  work.dbias_HP = arena.allocate(a, model.heads, 2 * longest - 1, limits.cut());
  if (limits.leaves > 0) {
    work.lookups.lay(arena, a, limits.encoder_tokens + limits.decoder_tokens, model.width, limits.leaves);
  }
}

void LookupWork::lay(Arena& arena, DType accumulate, std::int64_t tokens, std::int64_t width,
                     std::int64_t most_leaves) {
  dx_TD = arena.allocate(accumulate, tokens, width);
  ids_T = arena.allocate(DType::i32, tokens, 1);
  leaves.reserve(std::size_t(most_leaves) + 1);
}

void LookupWork::keep(const LayerContext& c, const Tensor& side_dx_TD, const Side& side, const Side& other,
                      bool behind) {
  leaves.assign(1, 0);
  for (std::size_t leaf = 0; leaf + 1 < side.leaf_token.size(); ++leaf) {
    const std::int64_t first = side.leaf_token[leaf], count = side.leaf_token[leaf + 1] - first;
    const std::int64_t place = first + other.leaf_token[leaf + (behind ? 1 : 0)];
    c.k.elementwise.convert(c.context, dx_TD.slice_rows(place, count), side_dx_TD.slice_rows(first, count));
    std::copy_n(side.ids_T.as<std::int32_t>() + first, count, ids_T.as<std::int32_t>() + place);
    leaves.push_back(side.leaf_token[leaf + 1] + other.leaf_token[leaf + 1]);
  }
}

const Tensor& Stack::after_self(std::size_t l) const {
  return encoder_ ? activations_.layers[l].x_ffn_TD : activations_.layers[l].x_cross_TD;
}

const Tensor& Stack::after_ffn(std::size_t l) const {
  return l + 1 < activations_.layers.size() ? activations_.layers[l + 1].x_self_TD : activations_.x_final_TD;
}

AttentionLayer Stack::self_attention(const Side& side, std::size_t l) const {
  return {tensors_.layers[l].self, self_shape(), &side.self, &side, &side, {}, activations_.bias_HP, site(l, kSelf)};
}

AttentionLayer Stack::cross_attention(const Side& side, const Stack& encoder, const Side& encoder_side,
                                      std::size_t l) const {
  const Tensor source_TD = first_rows(encoder.activations_.out_TD, encoder_side.tokens);
  return {tensors_.layers[l].cross, cross_shape(), &side.cross, &side, &encoder_side, source_TD, {}, site(l, kCross)};
}

void Stack::embed(const LayerContext& c, const Side& side) {
  const Tensor x_TD = first_rows(activations_.layers[0].x_self_TD, side.tokens);
  c.k.embedding.forward(c.context, x_TD, c.weight(embedding_), side.ids_T);
  const DropoutMask mask = embedding_mask(c, side);
  if (mask.rate > 0.0F) c.k.dropout.apply(c.context, x_TD, x_TD, mask);
}

void Stack::expand_positions(const LayerContext& c) {
  if (parallel()) {
    c.k.rotary.table(c.context, activations_.rotary_PK, deck_.model.rotary_base);
    return;
  }
  c.k.relative_bias.expand(c.context, activations_.bias_HP, c.weight(tensors_.relative_bias_UH), encoder_,
                           int(deck_.model.bias_max_distance));
}

Tensor Stack::finish(const LayerContext& c, const Side& side) {
  const Tensor out_TD = first_rows(activations_.out_TD, side.tokens);
  c.norm().forward(c.context, out_TD, first_rows(activations_.final_rstd_T, side.tokens),
                   first_rows(activations_.x_final_TD, side.tokens), c.weight(tensors_.final_norm_D),
                   float(deck_.model.norm_epsilon));
  const DropoutMask mask = final_mask(c, side);
  if (mask.rate > 0.0F) c.k.dropout.apply(c.context, out_TD, out_TD, mask);
  return out_TD;
}

DenseSublayer Stack::dense_of(std::size_t l) {
  LayerActivations& saved = activations_.layers[l];
  const LayerTensors<int>& tensors = tensors_.layers[l];
  if (tensors.sparse) {
    return {tensors.extra_norm_D, tensors.extra, saved.x_extra_TD,      saved.extra_rstd_T,
            saved.extra_y_TD,     &saved.dense,  site(l, kExtraHidden), site(l, kExtra)};
  }
  return {tensors.feed_forward_norm_D,
          tensors.dense,
          saved.x_ffn_TD,
          saved.ffn_rstd_T,
          saved.ffn_y_TD,
          &saved.dense,
          site(l, kHidden),
          site(l, kFeedForward)};
}

MoeLayer Stack::moe_of(std::size_t l) const {
  return {tensors_.layers[l].moe, routing_of(deck_.moe, encoder_), site(l, kHidden), moe_layers_};
}

void Stack::dense_sublayer(const LayerContext& c, const Tensor& x_out_TD, StackWork& work, const Side& side,
                           const DenseSublayer& layer) {
  const PartScope part(Part::dense_ffn);
  const auto rows = [&](const Tensor& t) { return first_rows(t, side.tokens); };
  c.norm().forward(c.context, rows(layer.y_TD), rows(layer.rstd_T), rows(layer.x_TD), c.weight(layer.norm_D),
                   float(deck_.model.norm_epsilon));
  const auto first = one_group(side.tokens);
  const Tensor part_TD = rows(work.sublayer.part_TD);
  feed_forward(c, part_TD, *layer.saved, rows(layer.y_TD),
               {layer.weights, first, side.leaf_token, feature_mask(c, side, layer.hidden_site), Part::dense_ffn});
  add_to_residual(c, x_out_TD, rows(layer.x_TD), part_TD, side, layer.output_site);
}

void Stack::sparse_sublayer(const LayerContext& c, const Tensor& x_out_TD, StackWork& work, const Side& side,
                            std::size_t l, StepStatistics& statistics) {
  const PartScope part(Part::experts);
  LayerActivations& saved = activations_.layers[l];
  const auto rows = [&](const Tensor& t) { return first_rows(t, side.tokens); };
  c.norm().forward(c.context, rows(saved.ffn_y_TD), rows(saved.ffn_rstd_T), rows(saved.x_ffn_TD),
                   c.weight(tensors_.layers[l].feed_forward_norm_D), float(deck_.model.norm_epsilon));
  const Tensor part_TD = rows(work.sublayer.part_TD);
  moe_forward(c, part_TD, saved.moe, work.moe, *dispatcher_, rows(saved.ffn_y_TD), moe_of(l), side.groups,
              statistics.moe[std::size_t(moe_index_[l])]);
  add_to_residual(c, x_out_TD, rows(saved.x_ffn_TD), part_TD, side, site(l, kFeedForward));
}

void Stack::feed_forward_sublayer(const LayerContext& c, const Tensor& x_out_TD, StackWork& work, const Side& side,
                                  std::size_t l, StepStatistics& statistics) {
  if (tensors_.layers[l].sparse) {
    const bool extra = deck_.moe.extra_feed_forward;
    const Tensor x_sparse_TD = extra ? first_rows(activations_.layers[l].x_extra_TD, side.tokens) : x_out_TD;
    sparse_sublayer(c, x_sparse_TD, work, side, l, statistics);
    if (!extra) return;
  }
  dense_sublayer(c, x_out_TD, work, side, dense_of(l));
}

void Stack::dense_sublayer_backward(const LayerContext& c, StackWork& work, const Side& side,
                                    const DenseSublayer& layer) {
  const PartScope part(Part::dense_ffn);
  const auto rows = [&](const Tensor& t) { return first_rows(t, side.tokens); };
  const Tensor dy_TD = rows(work.sublayer.dy_TD);
  const Tensor dpart_TD = residual_gradient(c, rows(work.sublayer.part_TD), rows(work.dx_TD), side, layer.output_site);
  const auto first = one_group(side.tokens);
  feed_forward_backward(
      c, dy_TD, work.dense, dpart_TD, rows(layer.y_TD), *layer.saved,
      {layer.weights, first, side.leaf_token, feature_mask(c, side, layer.hidden_site), Part::dense_ffn});
  norm_backward(c, rows(work.dx_TD), layer.norm_D, dy_TD, rows(layer.x_TD), rows(layer.rstd_T), side);
}

void Stack::sparse_sublayer_backward(const LayerContext& c, StackWork& work, const Side& side, std::size_t l) {
  const PartScope part(Part::experts);
  const LayerActivations& saved = activations_.layers[l];
  const int norm_D = tensors_.layers[l].feed_forward_norm_D;
  const auto rows = [&](const Tensor& t) { return first_rows(t, side.tokens); };
  const Tensor dy_TD = rows(work.sublayer.dy_TD);
  const Tensor dpart_TD =
      residual_gradient(c, rows(work.sublayer.part_TD), rows(work.dx_TD), side, site(l, kFeedForward));
  moe_backward(c, dy_TD, work.moe, *dispatcher_, dpart_TD, rows(saved.ffn_y_TD), moe_of(l), saved.moe, side.groups);
  norm_backward(c, rows(work.dx_TD), norm_D, dy_TD, rows(saved.x_ffn_TD), rows(saved.ffn_rstd_T), side);
}

void Stack::feed_forward_backward_sublayer(const LayerContext& c, StackWork& work, const Side& side, std::size_t l) {
  const bool sparse = tensors_.layers[l].sparse;
  if (!sparse || deck_.moe.extra_feed_forward) dense_sublayer_backward(c, work, side, dense_of(l));
  if (sparse) sparse_sublayer_backward(c, work, side, l);
}

Tensor Stack::forward(const LayerContext& c, StackWork& work, const Side& side, const Stack* encoder,
                      const Side* encoder_side, StepStatistics& statistics, const CachedKeys* cached) {
  const auto rows = [&](const Tensor& t) { return first_rows(t, side.tokens); };
  embed(c, side);
  if (cached == nullptr) expand_positions(c);
  for (std::size_t l = 0; l < tensors_.layers.size(); ++l) {
    if (parallel()) {
      parallel_layer(c, rows(after_ffn(l)), work, side, l, statistics, cached);
      continue;
    }
    LayerActivations& saved = activations_.layers[l];
    attention_sublayer(c, rows(after_self(l)), saved.self, work.sublayer, rows(saved.x_self_TD),
                       self_attention(side, l));
    if (encoder != nullptr) {
      attention_sublayer(c, rows(saved.x_ffn_TD), saved.cross, work.sublayer, rows(saved.x_cross_TD),
                         cross_attention(side, *encoder, *encoder_side, l));
    }
    feed_forward_sublayer(c, rows(after_ffn(l)), work, side, l, statistics);
  }
  return finish(c, side);
}

void GradientBuckets::complete_before(std::int64_t bucket) {
  for (; next_ < bucket; ++next_) {
    for (std::size_t p = 0; p < c_.store.specs().size(); ++p) {
      if (c_.store.specs()[p].bucket == next_ && !c_.store.contributed(int(p))) c_.gradient(int(p));
    }
    if (completed_) completed_(next_);
  }
}

void Stack::backward(const LayerContext& c, StackWork& work, const Side& side, const Stack* encoder,
                     const Side* encoder_side, GradientBuckets& buckets) {
  const auto rows = [&](const Tensor& t) { return first_rows(t, side.tokens); };
  const Tensor dx_TD = rows(work.dx_TD);
  const Tensor dout_TD = rows(work.dout_TD);
  // The two stacks share the work buffer; this one uses as much of its front as its own lengths need.
  const Tensor& bias_HP = activations_.bias_HP;
  const Tensor dbias_HP{work.dbias_HP.data, bias_HP.dtype, leaf_count(side.leaf_token),
                        bias_HP.rows,       bias_HP.cols,  bias_HP.cols};
  const bool to_encoder = encoder != nullptr && encoder->trains(c.store);
  const Tensor dsource_TD = to_encoder ? first_rows(work.dsource_TD, encoder_side->tokens) : Tensor{};
  const bool trains_bias = !parallel() && c.trains(tensors_.relative_bias_UH);
  c.k.elementwise.zero(c.context, dx_TD);
  if (!parallel()) c.k.elementwise.zero(c.context, dbias_HP);
  const DropoutMask mask = final_mask(c, side);
  if (mask.rate > 0.0F) c.k.dropout.apply(c.context, dout_TD, dout_TD, mask);
  norm_backward(c, dx_TD, tensors_.final_norm_D, dout_TD, rows(activations_.x_final_TD),
                rows(activations_.final_rstd_T), side);
  for (std::size_t l = tensors_.layers.size(); l-- > 0;) {
    buckets.complete_before_that_of(tensors_.layers[l].self.norm_D);
    if (parallel()) {
      parallel_layer_backward(c, work, side, l);
      continue;
    }
    const LayerActivations& saved = activations_.layers[l];
    feed_forward_backward_sublayer(c, work, side, l);
    if (encoder != nullptr) {
      attention_sublayer_backward(c, dx_TD, dsource_TD, {}, work.sublayer, rows(saved.x_cross_TD), saved.cross,
                                  cross_attention(side, *encoder, *encoder_side, l));
    }
    attention_sublayer_backward(c, dx_TD, {}, trains_bias ? dbias_HP : Tensor{}, work.sublayer, rows(saved.x_self_TD),
                                saved.self, self_attention(side, l));
  }
  if (trains_bias) {
    add_small_gradient(c, c.gradient(tensors_.relative_bias_UH), dbias_HP.batch,
                       [&](std::int64_t leaf, const Tensor& sum) {
                         c.k.relative_bias.gradient(c.context, sum, dbias_HP.matrix(leaf), encoder_,
                                                    int(deck_.model.bias_max_distance));
                       });
  }
  if (!c.trains(embedding_)) return;
  const DropoutMask input_mask = embedding_mask(c, side);
  if (input_mask.rate > 0.0F) c.k.dropout.apply(c.context, dx_TD, dx_TD, input_mask);
}

}  // namespace flanmoe
