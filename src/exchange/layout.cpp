#include "exchange/layout.hpp"

#include <algorithm>

#include "base/error.hpp"
#include "model/model.hpp"
#include "model/tensors.hpp"

namespace flanmoe {
namespace {

enum class Orientation : bool { as_here, transposed };

/// Collects places and gives them their shapes.
class Places {
 public:
  explicit Places(const Deck& deck)
      : specs(model_parameters(deck.model, deck.moe)), tensors(model_tensors(deck.model, deck.moe)) {}

  void matrix(int parameter, std::string name, Orientation orientation, std::int64_t expert = 0) {
    const ParameterSpec& spec = specs[std::size_t(parameter)];
    TensorPlace place{parameter, expert, std::move(name), {spec.rows, spec.cols}, false, {}};
    if (orientation == Orientation::transposed) {
      place.transposed = true;
      std::swap(place.shape[0], place.shape[1]);
    }
    places.push_back(std::move(place));
  }
  void vector(int parameter, std::string name) {
    places.push_back({parameter, 0, std::move(name), {specs[std::size_t(parameter)].cols}, false, {}});
  }
  /// Sorted, and complete: every matrix of the model has one place.
  std::vector<TensorPlace> take() {
    std::stable_sort(places.begin(), places.end(), [](const TensorPlace& a, const TensorPlace& b) {
      return std::pair(a.parameter, a.expert) < std::pair(b.parameter, b.expert);
    });
    std::size_t next = 0;
    for (std::size_t p = 0; p < specs.size(); ++p) {
      for (std::int64_t e = 0; e < specs[p].experts; ++e, ++next) {
        FLANMOE_EXPECT(next < places.size() && places[next].parameter == int(p) && places[next].expert == e,
                       "no place for {} of expert {}", specs[p].name, e);
      }
    }
    FLANMOE_EXPECT(next == places.size(), "{} places for {} matrices", places.size(), next);
    return std::move(places);
  }

  std::vector<ParameterSpec> specs;
  ModelTensors<int> tensors;
  std::vector<TensorPlace> places;
};

constexpr auto kHere = Orientation::as_here;
constexpr auto kTransposed = Orientation::transposed;

void add_hf_attention(Places& places, const AttentionTensors<int>& t, const std::string& layer,
                      const std::string& kind) {
  const std::string name = layer + "." + kind + ".";
  places.matrix(t.query_DQ, name + "q.weight", kTransposed);
  places.matrix(t.key_DQ, name + "k.weight", kTransposed);
  places.matrix(t.value_DQ, name + "v.weight", kTransposed);
  places.matrix(t.output_QD, name + "o.weight", kTransposed);
  places.vector(t.norm_D, layer + ".layer_norm.weight");
}

void add_hf_feed_forward(Places& places, const LayerTensors<int>& t, const std::string& layer, bool is_switch,
                         bool gated) {
  const std::string name = layer + (is_switch ? ".mlp." : ".DenseReluDense.");
  places.vector(t.feed_forward_norm_D, layer + ".layer_norm.weight");
  const auto add = [&](const FeedForwardTensors<int>& ffn, const std::string& prefix, std::int64_t expert) {
    if (gated) places.matrix(ffn.gate, prefix + "wi_0.weight", kTransposed, expert);
    places.matrix(ffn.up, prefix + (gated ? "wi_1.weight" : "wi.weight"), kTransposed, expert);
    places.matrix(ffn.down, prefix + "wo.weight", kTransposed, expert);
  };
  if (!t.sparse) return add(t.dense, name, 0);
  places.matrix(t.moe.router_DE, name + "router.classifier.weight", kTransposed);
  const std::int64_t experts = places.specs[std::size_t(t.moe.experts.up)].experts;
  for (std::int64_t e = 0; e < experts; ++e) add(t.moe.experts, fmt::format("{}experts.expert_{}.", name, e), e);
}

void add_hf_stack(Places& places, const Deck& deck, bool encoder) {
  const StackTensors<int>& t = encoder ? places.tensors.encoder : places.tensors.decoder;
  const std::string stack = encoder ? "encoder" : "decoder";
  const bool is_switch = deck.moe.router != "none";
  places.matrix(t.relative_bias_UH, stack + ".block.0.layer.0.SelfAttention.relative_attention_bias.weight", kHere);
  for (std::size_t l = 0; l < t.layers.size(); ++l) {
    const std::string block = fmt::format("{}.block.{}.layer.", stack, l);
    add_hf_attention(places, t.layers[l].self, block + "0", "SelfAttention");
    if (!encoder) add_hf_attention(places, t.layers[l].cross, block + "1", "EncDecAttention");
    add_hf_feed_forward(places, t.layers[l], block + (encoder ? "1" : "2"), is_switch,
                        deck.model.activation == "gated_gelu");
  }
  places.vector(t.final_norm_D, stack + ".final_layer_norm.weight");
}

void add_t5x_attention(Places& places, const AttentionTensors<int>& t, const std::string& layer,
                       const std::string& attention, const std::string& norm) {
  const std::string name = layer + attention + "/";
  places.matrix(t.query_DQ, name + "query/kernel", kHere);
  places.matrix(t.key_DQ, name + "key/kernel", kHere);
  places.matrix(t.value_DQ, name + "value/kernel", kHere);
  places.matrix(t.output_QD, name + "out/kernel", kHere);
  places.vector(t.norm_D, layer + norm + "/scale");
}

void add_t5x_stack(Places& places, const Deck& deck, bool encoder) {
  const StackTensors<int>& t = encoder ? places.tensors.encoder : places.tensors.decoder;
  const std::string stack = encoder ? "encoder/" : "decoder/";
  const bool gated = deck.model.activation == "gated_gelu";
  places.matrix(t.relative_bias_UH, stack + "relpos_bias/rel_embedding", kTransposed);
  for (std::size_t l = 0; l < t.layers.size(); ++l) {
    const std::string layer = fmt::format("{}layers_{}/", stack, l);
    const LayerTensors<int>& tensors = t.layers[l];
    add_t5x_attention(places, tensors.self, layer, encoder ? "attention" : "self_attention",
                      encoder ? "pre_attention_layer_norm" : "pre_self_attention_layer_norm");
    if (!encoder) {
      add_t5x_attention(places, tensors.cross, layer, "encoder_decoder_attention", "pre_cross_attention_layer_norm");
    }
    places.vector(tensors.feed_forward_norm_D, layer + "pre_mlp_layer_norm/scale");
    if (gated) places.matrix(tensors.dense.gate, layer + "mlp/wi_0/kernel", kHere);
    places.matrix(tensors.dense.up, layer + (gated ? "mlp/wi_1/kernel" : "mlp/wi/kernel"), kHere);
    places.matrix(tensors.dense.down, layer + "mlp/wo/kernel", kHere);
  }
  places.vector(t.final_norm_D, stack + (encoder ? "encoder_norm/scale" : "decoder_norm/scale"));
}

}  // namespace

std::vector<TensorPlace> hf_layout(const Deck& deck) {
  Places places(deck);
  places.matrix(places.tensors.embedding_VD, "shared.weight", kHere);
  TensorPlace& embedding = places.places.back();
  embedding.aliases = {"encoder.embed_tokens.weight", "decoder.embed_tokens.weight"};
  if (deck.model.tied_logits) embedding.aliases.emplace_back("lm_head.weight");
  for (const bool encoder : {true, false}) add_hf_stack(places, deck, encoder);
  if (!deck.model.tied_logits) places.matrix(places.tensors.logits_DV, "lm_head.weight", kTransposed);
  return places.take();
}

std::vector<TensorPlace> t5x_layout(const Deck& deck) {
  FLANMOE_EXPECT(deck.moe.router == "none", "a T5X layout of router {}", deck.moe.router);
  Places places(deck);
  places.matrix(places.tensors.embedding_VD, "token_embedder/embedding", kHere);
  for (const bool encoder : {true, false}) add_t5x_stack(places, deck, encoder);
  if (!deck.model.tied_logits) places.matrix(places.tensors.logits_DV, "decoder/logits_dense/kernel", kHere);
  return places.take();
}

bool is_unused_in_hf(const std::string& name) {
  // Left over from the conversion of the first T5 checkpoints: cross attention has no relative bias.
  return name == "decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight";
}

}  // namespace flanmoe
