#include "model/tensors.hpp"

#include <cmath>

#include "model/model.hpp"
#include "moe/routing.hpp"

namespace flanmoe {
namespace {

/// Walks the set in the order of the forward pass and gives every tensor its specification and index.
/// Initial values: T5X (paper facts 4.1); init_scale is the scale of variance_scaling (1 for T5, 0.1 for MoE models).
struct Builder {
  static constexpr InitKind kMatrix = InitKind::truncated_normal;
  const ModelDeck& model;
  const MoeDeck& moe;
  std::vector<ParameterSpec> specs;
  ModelTensors<int> tensors;

  int add(ParameterSpec spec) {
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
  /// name/gate, name/up, name/down, name/scale, as far as the deck has them.
  FeedForwardTensors<int> dense(const std::string& name, std::int64_t hidden) {
    FeedForwardTensors<int> t;
    if (model.activation == "gated_gelu") t.gate = matrix(name + "gate", model.width, hidden, kMatrix);
    t.up = matrix(name + "up", model.width, hidden, kMatrix);
    t.down = matrix(name + "down", hidden, model.width, kMatrix);
    if (model.multiplicative_bias) {
      t.scale = add({name + "scale", 1, 1, hidden, Placement::dense, InitKind::ones, 0, true});
    }
    return t;
  }
  FeedForwardTensors<int> experts(const std::string& name) {
    FeedForwardTensors<int> t;
    if (model.activation == "gated_gelu") t.gate = expert_matrix(name + "gate", model.width, model.hidden);
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

  AttentionTensors<int> attention(const std::string& name) {
    const std::int64_t d = model.width;
    const std::int64_t q = model.heads * model.head_width;
    AttentionTensors<int> t;
    t.norm_D = norm(name + "/norm");
    // The 1/sqrt(head width) of the scores is folded into the query's initial values.
    t.query_DQ = matrix(name + "/query", d, q, InitKind::normal, 1.0 / std::sqrt(double(model.head_width)));
    t.key_DQ = matrix(name + "/key", d, q, InitKind::normal);
    t.value_DQ = matrix(name + "/value", d, q, InitKind::normal);
    t.output_QD = matrix(name + "/output", q, d, InitKind::normal);
    return t;
  }

  LayerTensors<int> layer(bool encoder, std::int64_t index) {
    const std::string name = layer_name(encoder, index);
    LayerTensors<int> t;
    t.self = attention(name + "/self_attention");
    if (!encoder) t.cross = attention(name + "/cross_attention");
    t.feed_forward_norm_D = norm(name + "/feed_forward/norm");
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

  StackTensors<int> stack(bool encoder) {
    const std::string name = encoder ? "encoder" : "decoder";
    StackTensors<int> t;
    // variance_scaling(scale, fan_avg, uniform): half-width sqrt(3*scale/fan_avg).
    const double fan_average = double(model.bias_buckets + model.heads) / 2.0;
    t.relative_bias_UH = add({name + "/relative_bias", 1, model.bias_buckets, model.heads, Placement::dense,
                              InitKind::uniform, std::sqrt(3.0 * model.init_scale / fan_average), true});
    const std::int64_t layers = encoder ? model.encoder_layers : model.decoder_layers;
    for (std::int64_t l = 0; l < layers; ++l) t.layers.push_back(layer(encoder, l));
    t.final_norm_D = norm(name + "/final_norm");
    return t;
  }

  void build() {
    tensors.embedding_VD =
        add({"embedding", 1, model.vocabulary, model.width, Placement::dense, InitKind::normal, 1.0, false});
    tensors.encoder = stack(true);
    tensors.decoder = stack(false);
    if (!model.tied_logits) {
      tensors.logits_DV = matrix("logits", model.width, model.vocabulary, InitKind::truncated_normal);
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
