#include "moe/feed_forward.hpp"

#include <array>

#include "moe/leaves.hpp"

namespace flanmoe {
namespace {

bool gated(const LayerContext& c) { return c.deck.model.gated(); }
bool swish(const LayerContext& c) { return c.deck.model.activation == "gated_swish"; }

std::span<const Tensor> gradients_of(const LayerContext& c, FeedForwardWork& work, int parameter) {
  work.gradients.clear();
  for (std::int64_t e = 0; e < c.store.local_experts(parameter); ++e) {
    for (std::int64_t s = 0; s < c.store.sources(parameter); ++s) {
      work.gradients.push_back(c.store.gradient(parameter, e, s));
    }
  }
  return work.gradients;
}

/// Adds x^T . dy, expert by expert, to the gradients of a weight; frozen ones cost nothing.
void add_gradients(const LayerContext& c, FeedForwardWork& work, int parameter, const Tensor& x, const Tensor& dy,
                   std::span<const std::int64_t> first) {
  if (!c.trains(parameter)) return;
  c.k.matmul.grouped_weight_gradient(c.context, gradients_of(c, work, parameter), x, dy, first, c.beta(parameter));
}

std::int64_t experts_in(const FeedForward& layer) { return std::int64_t(layer.first.size()) - 1; }

/// What belongs to the experts of a layer, of that of all experts of this rank.
Tensor of_experts(const Tensor& all, const FeedForward& layer) {
  Tensor part = all.offset_by(layer.first_expert * all.rows * all.stride);
  part.batch = experts_in(layer);
  return part;
}

/// y = x . op(weight), expert by expert: from the packed copy of the weight where one is kept, which is made anew where
/// the weight has changed.
void multiply(const LayerContext& c, const Tensor& y, const Tensor& x, int parameter, Transpose transpose,
              const FeedForward& layer) {
  const bool transposed = transpose == Transpose::yes;
  const Tensor& packed = c.store.packed(parameter, transposed);
  if (packed.absent()) {
    c.k.matmul.grouped(c.context, y, x, of_experts(c.weight(parameter), layer), transpose, layer.first);
    return;
  }
  if (c.store.packing_due(parameter, transposed)) {
    c.k.matmul.packed->pack(c.context, packed, c.weight(parameter), transpose);
  }
  c.k.matmul.packed->grouped(c.context, y, x, of_experts(packed, layer), layer.first);
}

/// Through the multiplicative bias: dhidden = dscaled * scale, in place; adds to the gradients of the scale.
void scale_backward(const LayerContext& c, FeedForwardWork& work, const Tensor& dhidden_RF, const Tensor& hidden_RF,
                    const FeedForward& layer) {
  const int scale = layer.weights.scale;
  if (!c.trains(scale)) {
    c.k.column_scale.forward(c.context, dhidden_RF, dhidden_RF, of_experts(c.weight(scale), layer), layer.first);
    return;
  }
  // Added to; the first experts begin the gradient of all.
  if (layer.first_expert == 0) c.gradient(scale);
  const auto sources = std::size_t(c.store.sources(scale));
  const auto gradients =
      gradients_of(c, work, scale)
          .subspan(std::size_t(layer.first_expert) * sources, std::size_t(experts_in(layer)) * sources);
  const std::int64_t leaves = leaf_count(layer.leaf_first) / std::int64_t(gradients.size());
  for (std::size_t g = 0; g < gradients.size(); ++g) {  // one expert's rows of one source
    const Tensor factors = of_experts(c.weight(scale), layer).matrix(std::int64_t(g / sources));
    add_small_gradient(c, gradients[g], leaves, [&](std::int64_t leaf, const Tensor& sum) {
      const std::size_t i = g * std::size_t(leaves) + std::size_t(leaf);
      const std::int64_t begin = layer.leaf_first[i], count = layer.leaf_first[i + 1] - begin;
      const Tensor part = dhidden_RF.slice_rows(begin, count);
      c.k.column_scale.backward(c.context, part, {&sum, 1}, part, hidden_RF.slice_rows(begin, count), factors,
                                std::array<std::int64_t, 2>{0, count});
    });
  }
}

void apply_dropout(const LayerContext& c, const Tensor& hidden_RF, const DropoutMask& mask) {
  if (mask.rate > 0.0F) c.k.dropout.apply(c.context, hidden_RF, hidden_RF, mask);
}

/// What the last matrix multiplies.
const Tensor& scaled(const LayerContext& c, const FeedForwardActivations& saved) {
  return c.deck.model.multiplicative_bias ? saved.scaled_RF : saved.hidden_RF;
}

}  // namespace

void FeedForwardActivations::lay(Arena& arena, const ModelDeck& model, DType compute, std::int64_t rows,
                                 std::int64_t hidden) {
  if (model.gated()) {
    gate_RF = arena.allocate(compute, rows, hidden);
    up_RF = arena.allocate(compute, rows, hidden);
  }
  hidden_RF = arena.allocate(compute, rows, hidden);
  if (model.multiplicative_bias) scaled_RF = arena.allocate(compute, rows, hidden);
}

void FeedForwardWork::lay(Arena& arena, const ModelDeck& model, DType compute, std::int64_t rows,
                          std::int64_t gradient_count, std::int64_t hidden) {
  dhidden_RF = arena.allocate(compute, rows, hidden);
  if (model.gated()) {
    dgate_RF = arena.allocate(compute, rows, hidden);
    dpart_RD = arena.allocate(compute, rows, model.width);
  }
  gradients.reserve(std::size_t(gradient_count));
}

void feed_forward(const LayerContext& c, const Tensor& y_RD, FeedForwardActivations& saved, const Tensor& x_RD,
                  const FeedForward& layer) {
  const PartScope part(layer.part);
  const auto rows = [&](const Tensor& t) { return t.slice_rows(layer.first_row, x_RD.rows); };
  const Tensor hidden_RF = rows(saved.hidden_RF);
  if (gated(c)) {
    const Tensor gate_RF = rows(saved.gate_RF), up_RF = rows(saved.up_RF);
    multiply(c, gate_RF, x_RD, layer.weights.gate, Transpose::no, layer);
    multiply(c, up_RF, x_RD, layer.weights.up, Transpose::no, layer);
    const auto activate = swish(c) ? c.k.activation.gated_swish_forward : c.k.activation.gated_gelu_forward;
    activate(c.context, hidden_RF, gate_RF, up_RF);
  } else {
    multiply(c, hidden_RF, x_RD, layer.weights.up, Transpose::no, layer);
    c.k.activation.relu_forward(c.context, hidden_RF, hidden_RF);
  }
  apply_dropout(c, hidden_RF, layer.dropout);
  const Tensor scaled_RF = rows(scaled(c, saved));
  if (c.deck.model.multiplicative_bias) {
    c.k.column_scale.forward(c.context, scaled_RF, hidden_RF, of_experts(c.weight(layer.weights.scale), layer),
                             layer.first);
  }
  multiply(c, y_RD, scaled_RF, layer.weights.down, Transpose::no, layer);
}

void feed_forward_backward(const LayerContext& c, const Tensor& dx_RD, FeedForwardWork& work, const Tensor& dy_RD,
                           const Tensor& x_RD, const FeedForwardActivations& saved, const FeedForward& layer) {
  feed_forward_input_gradient(c, dx_RD, work, dy_RD, saved, layer);
  feed_forward_weight_gradients(c, work, dy_RD, x_RD, saved, layer);
}

void feed_forward_input_gradient(const LayerContext& c, const Tensor& dx_RD, FeedForwardWork& work, const Tensor& dy_RD,
                                 const FeedForwardActivations& saved, const FeedForward& layer) {
  const PartScope part(layer.part);
  const auto rows = [&](const Tensor& t) { return t.slice_rows(layer.first_row, dy_RD.rows); };
  const FeedForwardTensors<int>& weights = layer.weights;
  const Tensor hidden_RF = rows(saved.hidden_RF), dhidden_RF = rows(work.dhidden_RF);
  multiply(c, dhidden_RF, dy_RD, weights.down, Transpose::yes, layer);
  if (c.deck.model.multiplicative_bias) scale_backward(c, work, dhidden_RF, hidden_RF, layer);
  apply_dropout(c, dhidden_RF, layer.dropout);
  if (!gated(c)) {
    // A dropped hidden value is 0 in the saved output too, so relu's own test on it changes nothing.
    c.k.activation.relu_backward(c.context, dhidden_RF, dhidden_RF, hidden_RF);
    multiply(c, dx_RD, dhidden_RF, weights.up, Transpose::yes, layer);
    return;
  }
  const Tensor dgate_RF = rows(work.dgate_RF), dup_RF = dhidden_RF, dpart_RD = rows(work.dpart_RD);
  const auto back = swish(c) ? c.k.activation.gated_swish_backward : c.k.activation.gated_gelu_backward;
  back(c.context, dgate_RF, dup_RF, dhidden_RF, rows(saved.gate_RF), rows(saved.up_RF));
  multiply(c, dx_RD, dgate_RF, weights.gate, Transpose::yes, layer);
  multiply(c, dpart_RD, dup_RF, weights.up, Transpose::yes, layer);
  c.k.elementwise.add(c.context, dx_RD, dpart_RD);
}

void feed_forward_weight_gradients(const LayerContext& c, FeedForwardWork& work, const Tensor& dy_RD,
                                   const Tensor& x_RD, const FeedForwardActivations& saved, const FeedForward& layer) {
  const PartScope part(layer.part);
  const auto rows = [&](const Tensor& t) { return first_rows(t, x_RD.rows); };
  const FeedForwardTensors<int>& weights = layer.weights;
  add_gradients(c, work, weights.down, rows(scaled(c, saved)), dy_RD, layer.leaf_first);
  if (gated(c)) add_gradients(c, work, weights.gate, x_RD, rows(work.dgate_RF), layer.leaf_first);
  add_gradients(c, work, weights.up, x_RD, rows(work.dhidden_RF), layer.leaf_first);
}

}  // namespace flanmoe
