#include "model/tensors.hpp"

#include <cmath>

#include "model/model.hpp"
#include "moe/routing.hpp"

namespace flanmoe {
namespace {

/// Walks the set in the order of the forward pass and gives every tensor its specification, index and bucket.
/// Initial values: T5X (paper facts 4.1); init_scale is the scale of variance_scaling (1 for T5, 0.1 for MoE models).
/// PaLM: every matrix normal with variance 1 / fan_in, the embedding N(0, 1).
struct Builder {
  const ModelDeck& model;
  const MoeDeck& moe;
  std::vector<ParameterSpec> specs;
  ModelTensors<int> tensors;
  std::int64_t bucket = 0;  // of what is added

  int add(ParameterSpec spec) {
    spec.bucket = bucket;
    specs.push_back(std::move(spec));
    return int(specs.size()) - 1;
  }
  int norm(const std::string& name) {
    return add({name, 1, 1, model.width, Placement::dense, InitKind::ones, 0, true});
  }
  /// variance_scaling(init_scale, fan_in): standard deviation sqrt(scale / fan_in); fan_in is the number of rows.
  int matrix(const std::string& name, std::int64_t rows, std::int64_t cols, InitKind kind, double shrink = 1.0) {
    const double deviation = std::sqrt(model.init_scale / double(rows)) * shrink;
    return add({name, 1, rows, cols, Placement::dense, kind, deviation, false});
  }
  int expert_matrix(const std::string& name, std::int64_t rows, std::int64_t cols) {
    const double deviation = std::sqrt(model.init_scale / double(rows));
    return add({name, moe.experts, rows, cols, Placement::expert, InitKind::normal, deviation, false});
  }
  InitKind matrix_kind() const { return model.decoder_only() ? InitKind::normal : InitKind::truncated_normal; }
  /// name/gate, name/up, name/down, name/scale, as far as the deck has them.
  FeedForwardTensors<int> dense(const std::string& name, std::int64_t hidden) {
    FeedForwardTensors<int> t;
    if (model.gated()) t.gate = matrix(name + "gate", model.width, hidden, matrix_kind());
    t.up = matrix(name + "up", model.width, hidden, matrix_kind());
    t.down = matrix(name + "down", hidden, model.width, matrix_kind());
    if (model.multiplicative_bias) {
      t.scale = add({name + "scale", 1, 1, hidden, Placement::dense, InitKind::ones, 0, true});
    }
    return t;
  }
  FeedForwardTensors<int> experts(const std::string& name) {
    FeedForwardTensors<int> t;
    if (model.gated()) t.gate = expert_matrix(name + "gate", model.width, model.hidden);
    t.up = expert_matrix(name + "up", model.width, model.hidden);
    t.down = expert_matrix(name + "down", model.hidden, model.width);
    if (model.multiplicative_bias) {
      t.scale = add({name + "scale", moe.experts, 1, model.hidden, Placement::expert, InitKind::ones, 0, true});
    }
    return t;
  }
  MoeTensors<int> sparse(const std::string& name, bool expert_choice) {
    MoeTensors<int> t;
    t.router_DE =
        add({name + "router", 1, model.width, moe.experts, Placement::dense, InitKind::normal, moe.router_init, true});
    if (moe.bias_rate > 0.0 && !expert_choice) {
      t.bias_E =
          add({name + "router_bias", 1, 1, moe.experts, Placement::dense, InitKind::zeros, 0, true, moe.bias_rate});
    }
    t.experts = experts(name + "expert_");
    if (moe.shared_experts > 0) t.shared = dense(name + "shared_", moe.shared_experts * model.hidden);
    return t;
  }

  AttentionTensors<int> attention(const std::string& name, const std::string& norm_name) {
    const std::int64_t d = model.width;
    const std::int64_t q = model.heads * model.head_width;
    const std::int64_t kv = model.key_heads() * model.head_width;
    AttentionTensors<int> t;
    t.norm_D = norm(norm_name);
    // T5 folds the 1/sqrt(head width) of the scores into the query's initial values; PaLM divides the scores.
    const double shrink = model.decoder_only() ? 1.0 : 1.0 / std::sqrt(double(model.head_width));
    t.query_DQ = matrix(name + "/query", d, q, InitKind::normal, shrink);
    t.key_DQ = matrix(name + "/key", d, kv, InitKind::normal);
    t.value_DQ = matrix(name + "/value", d, kv, InitKind::normal);
    t.output_QD = matrix(name + "/output", q, d, InitKind::normal);
    return t;
  }

  LayerTensors<int> layer(bool encoder, std::int64_t index) {
    const std::string name = layer_name(encoder, index);
    LayerTensors<int> t;
    if (model.decoder_only()) {
      t.self = attention(name + "/self_attention", name + "/norm");
    } else {
      t.self = attention(name + "/self_attention", name + "/self_attention/norm");
      if (!encoder) t.cross = attention(name + "/cross_attention", name + "/cross_attention/norm");
      t.feed_forward_norm_D = norm(name + "/feed_forward/norm");
    }
    t.sparse = is_sparse_layer(moe, encoder, index);
    if (!t.sparse) {
      t.dense = dense(name + "/feed_forward/", model.hidden);
      return t;
    }
    t.moe = sparse(name + "/feed_forward/", routing_of(moe, encoder).expert_choice);
    if (moe.extra_feed_forward) {
      t.extra_norm_D = norm(name + "/extra_feed_forward/norm");
      t.extra = dense(name + "/extra_feed_forward/", model.hidden);
    }
    return t;
  }

  int relative_bias(const std::string& name) {
    // variance_scaling(scale, fan_avg, uniform): half-width sqrt(3*scale/fan_avg).
    const double fan_average = double(model.bias_buckets + model.heads) / 2.0;
    return add({name, 1, model.bias_buckets, model.heads, Placement::dense, InitKind::uniform,
                std::sqrt(3.0 * model.init_scale / fan_average), true});
  }

  /// A backward pass goes down from the top layer, whose bucket is `first`; biases of positions that all layers share
  /// are complete with the last layer.
  StackTensors<int> stack(bool encoder, std::int64_t first) {
    const std::string name = encoder ? "encoder" : "decoder";
    StackTensors<int> t;
    const std::int64_t layers = encoder ? model.encoder_layers : model.decoder_layers;
    bucket = first + layers - 1;
    if (!model.decoder_only()) t.relative_bias_UH = relative_bias(name + "/relative_bias");
    for (std::int64_t l = 0; l < layers; ++l, --bucket) t.layers.push_back(layer(encoder, l));
    bucket = first;
    t.final_norm_D = norm(name + "/final_norm");
    return t;
  }

  void build() {
    const std::int64_t decoder = model.tied_logits ? 0 : 1, encoder = decoder + model.decoder_layers;
    bucket = model.decoder_only() ? encoder : encoder + model.encoder_layers;  // what is looked up comes last
    tensors.embedding_VD =
        add({"embedding", 1, model.vocabulary, model.width, Placement::dense, InitKind::normal, 1.0, false});
    if (!model.decoder_only()) tensors.encoder = stack(true, encoder);
    tensors.decoder = stack(false, decoder);
    bucket = 0;
    if (!model.tied_logits) {
      const InitKind kind = model.decoder_only() ? InitKind::normal : InitKind::truncated_normal;
      tensors.logits_DV = matrix("logits", model.width, model.vocabulary, kind);
    }
  }
};

}  // namespace

bool is_sparse_layer(const MoeDeck& moe, bool encoder, std::int64_t layer) {
  if (moe.router == "none" || !(encoder ? moe.encoder : moe.decoder)) return false;
  return layer % moe.every == moe.every - 1;
}

std::string layer_name(bool encoder, std::int64_t layer) {
  return fmt::format("{}/layer_{:02}", encoder ? "encoder" : "decoder", layer);
}

ModelTensors<int> model_tensors(const ModelDeck& model, const MoeDeck& moe) {
  Builder builder{model, moe, {}, {}};
  builder.build();
  return builder.tensors;
}

std::vector<ParameterSpec> model_parameters(const ModelDeck& model, const MoeDeck& moe) {
  Builder builder{model, moe, {}, {}};
  builder.build();
  return builder.specs;
}

}  // namespace flanmoe
