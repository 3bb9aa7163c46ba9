#include "exchange/hf_config.hpp"

#include <algorithm>
#include <cmath>
#include <optional>
#include <string_view>

#include "base/error.hpp"
#include "data/shard.hpp"
#include "deck/table.hpp"
#include "model/tensors.hpp"
#include "moe/routing.hpp"

namespace flanmoe {
namespace {

using nlohmann::json;

/// Typed members of a config, with errors that name file and key.
class Config {
 public:
  Config(const json& config, const std::string& path) : config_(config), path_(path) {
    if (!config.is_object()) fail("{}: expected a JSON object", path);
  }
  bool has(const char* key) const { return config_.contains(key) && !config_.at(key).is_null(); }
  std::int64_t integer(const char* key, std::optional<std::int64_t> otherwise = {}) const {
    if (!has(key) && otherwise) return *otherwise;
    const json& value = member(key);
    // Bounds keep products of a few of these far from the end of 64 bits.
    if (!value.is_number_integer() || value.get<std::int64_t>() < 0 || value.get<std::int64_t>() > (1 << 30)) {
      fail("{}: {} is {}; expected an integer from 0 to 2^30", path_, key, value.dump());
    }
    return value.get<std::int64_t>();
  }
  double number(const char* key, double otherwise) const {
    if (!has(key)) return otherwise;
    if (!member(key).is_number()) fail("{}: {} is {}; expected a number", path_, key, member(key).dump());
    return member(key).get<double>();
  }
  std::string text(const char* key, const std::string& otherwise) const {
    if (!has(key)) return otherwise;
    if (!member(key).is_string()) fail("{}: {} is {}; expected a text", path_, key, member(key).dump());
    return member(key).get<std::string>();
  }
  bool flag(const char* key, bool otherwise) const {
    if (!has(key)) return otherwise;
    if (!member(key).is_boolean()) fail("{}: {} is {}; expected true or false", path_, key, member(key).dump());
    return member(key).get<bool>();
  }
  /// Refuses another value than the one that flanmoe has built in.
  void require(const char* key, std::int64_t expected) const {
    if (const std::int64_t found = integer(key, expected); found != expected) {
      fail("{}: {} is {}; flanmoe needs {}", path_, key, found, expected);
    }
  }
  const std::string& path() const { return path_; }

 private:
  const json& member(const char* key) const {
    if (!has(key)) fail("{}: {} is missing", path_, key);
    return config_.at(key);
  }
  const json& config_;
  const std::string& path_;
};

/// transformers 4: layer i is sparse iff i % step == 1, or step == 1; step 0 is never.
bool is_sparse_in_hf(std::int64_t step, std::int64_t layer) { return step > 0 && (step == 1 || layer % step == 1); }

/// The step that a stack uses: SwitchTransformersConfig computes it from the number of sparse layers unless it is
/// given.
std::int64_t sparse_step(const Config& config, bool encoder, std::int64_t layers) {
  const std::int64_t sparse =
      config.integer(encoder ? "num_sparse_encoder_layers" : "num_sparse_decoder_layers", std::int64_t{3});
  const std::int64_t derived = sparse > 0 ? layers / sparse : layers;
  return config.integer(encoder ? "encoder_sparse_step" : "decoder_sparse_step", derived);
}

struct Placement {
  std::int64_t every = 1;
  bool encoder = false, decoder = false;
};

/// The placement of flanmoe that makes the same layers sparse.
Placement sparse_placement(const Config& config, std::int64_t encoder_layers, std::int64_t decoder_layers) {
  const std::int64_t steps[2] = {sparse_step(config, true, encoder_layers), sparse_step(config, false, decoder_layers)};
  const std::int64_t layers[2] = {encoder_layers, decoder_layers};
  const auto any = [&](int side) {
    for (std::int64_t l = 0; l < layers[side]; ++l) {
      if (is_sparse_in_hf(steps[side], l)) return true;
    }
    return false;
  };
  for (std::int64_t every = 1; every <= std::max(layers[0], layers[1]); ++every) {
    MoeDeck moe;
    moe.router = "top_k";
    moe.every = every;
    moe.encoder = any(0);
    moe.decoder = any(1);
    bool same = moe.encoder || moe.decoder;
    for (int side = 0; side < 2; ++side) {
      for (std::int64_t l = 0; l < layers[side]; ++l) {
        same = same && is_sparse_in_hf(steps[side], l) == is_sparse_layer(moe, side == 0, l);
      }
    }
    if (same) return {every, moe.encoder, moe.decoder};
  }
  fail(
      "{}: encoder_sparse_step {} and decoder_sparse_step {} make other layers sparse than any moe.every of flanmoe "
      "(layer l, from 0, with l % every == every - 1, the same in both stacks)",
      config.path(), steps[0], steps[1]);
}

/// transformers multiplies the sum over both stacks of each stack's mean over layers; flanmoe takes the mean over all
/// sparse layers. With as many sparse layers in both stacks flanmoe's coefficient is larger by the number of stacks.
double stacks_of(bool encoder, bool decoder) { return (encoder ? 1.0 : 0.0) + (decoder ? 1.0 : 0.0); }

std::string moe_text(const Config& config, std::int64_t encoder_layers, std::int64_t decoder_layers) {
  const Placement placement = sparse_placement(config, encoder_layers, decoder_layers);
  if (config.flag("router_bias", false)) fail("{}: router_bias is true; flanmoe's routers have none", config.path());
  const double stacks = stacks_of(placement.encoder, placement.decoder);
  return fmt::format(
      "\n[moe]\nrouter = top_k\ntop_k = 1\nexperts = {}\nevery = {}\nencoder = {}\ndecoder = {}\n"
      "jitter = {}\nbalance_coefficient = {}\nz_coefficient = {}\n",
      config.integer("num_experts"), placement.every, placement.encoder, placement.decoder,
      config.number("router_jitter_noise", 0.01), stacks * config.number("router_aux_loss_coef", 0.001),
      stacks * config.number("router_z_loss_coef", 0.001));
}

/// The sparse keys of flanmoe are all that the preset of a Switch model is about, and they are given one by one.
const char* preset_of(bool is_switch, bool gated) { return is_switch ? "custom" : gated ? "t5_1_1" : "t5_1_0"; }

}  // namespace

std::string deck_text_of_config(const json& json_config, const std::string& path) {
  const Config config(json_config, path);
  const std::string type = config.text("model_type", "(missing)");
  const bool is_switch = type == "switch_transformers";
  if (!is_switch && type != "t5") fail("{}: model_type is {}; expected t5 or switch_transformers", path, type);
  const char* activation_key = is_switch ? "dense_act_fn" : "feed_forward_proj";
  const std::string activation = config.text(activation_key, "relu");
  const bool gated = !is_switch && activation == "gated-gelu";
  if (!gated && activation != "relu") {
    fail("{}: {} is {}; expected relu{}", path, activation_key, activation, is_switch ? "" : " or gated-gelu");
  }
  config.require("pad_token_id", kPad);
  config.require("eos_token_id", kEos);
  config.require("decoder_start_token_id", kPad);
  const std::int64_t encoder_layers = config.integer("num_layers");
  const std::int64_t decoder_layers = config.integer("num_decoder_layers", encoder_layers);
  constexpr std::int64_t kMostLayers = 10'000;  // so that a damaged file is refused before names are made of it
  if (std::max(encoder_layers, decoder_layers) > kMostLayers) {
    fail("{}: {} and {} layers; expected at most {}", path, encoder_layers, decoder_layers, kMostLayers);
  }
  std::string text = fmt::format(
      "[model]\nfamily = t5\npreset = {}\nvocabulary = {}\nwidth = {}\nhidden = {}\nheads = {}\nhead_width = {}\n"
      "encoder_layers = {}\ndecoder_layers = {}\nactivation = {}\ntied_logits = {}\nbias_buckets = {}\n"
      "bias_max_distance = {}\nnorm_epsilon = {}\ndropout = {}\n",
      preset_of(is_switch, gated), config.integer("vocab_size"), config.integer("d_model"), config.integer("d_ff"),
      config.integer("num_heads"), config.integer("d_kv"), encoder_layers, decoder_layers,
      gated ? "gated_gelu" : "relu", config.flag("tie_word_embeddings", true),
      config.integer("relative_attention_num_buckets", std::int64_t{32}),
      config.integer("relative_attention_max_distance", std::int64_t{128}), config.number("layer_norm_epsilon", 1e-6),
      config.number("dropout_rate", 0.1));
  text += is_switch ? moe_text(config, encoder_layers, decoder_layers) : "\n[moe]\nrouter = none\n";
  return text;
}

namespace {

// Keys that say how a model is trained or how large its buffers are; they do not change what it computes, as long as no
// token is dropped.
constexpr std::string_view kFreeKeys[] = {
    "model.preset",         "model.init_scale",        "model.dropout_shared_over_length",
    "model.z_loss",         "moe.capacity_factor",     "moe.capacity_factor_eval",
    "moe.capacity_times_k", "moe.capacity_rounding",   "moe.min_capacity",
    "moe.group_rows",       "moe.router_init",         "moe.expert_dropout",
    "moe.buffer_factor",    "moe.balance_coefficient", "moe.balance_scale",
    "moe.balance_choices",  "moe.z_coefficient",       "moe.auxiliary_over_layers",
    "moe.second_policy",    "moe.second_policy_eval",  "moe.second_threshold",
    "moe.dispatch_chunks",  "moe.packed_weights",
};

[[noreturn]] void refuse(const std::string& key, const std::string& found, const std::string& expected) {
  fail("{} = {}: transformers has no such model; expected {}", key, found, expected);
}

/// Refuses a model that config.json cannot tell: read back, every key must have the value it has here.
void refuse_what_is_lost(const Deck& deck, const json& config) {
  const Deck back = parse_deck_text("config.json", deck_text_of_config(config, "config.json"), {});
  for (const auto& parameter : deck_detail::parameter_table()) {
    const bool matters = parameter.section() == "model" || parameter.key == "moe.router" ||
                         (parameter.section() == "moe" && deck.moe.router != "none");
    if (!matters || std::find(std::begin(kFreeKeys), std::end(kFreeKeys), parameter.key) != std::end(kFreeKeys))
      continue;
    const std::string here = value_text(deck, parameter), there = value_text(back, parameter);
    if (here != there) refuse(parameter.key, here, there);
  }
}

/// Slots of an expert in a row of `tokens` tokens; transformers has one constant for all lengths and both stacks.
std::int64_t constant_capacity(const Deck& deck) {
  const std::int64_t tokens = std::max(deck.batch.input_length, deck.batch.target_length);
  return std::min(tokens, expert_capacity(deck.moe, routing_of(deck.moe, true), /*training=*/false, tokens));
}

void add_switch_keys(json& config, const Deck& deck) {
  const MoeDeck& moe = deck.moe;
  if (moe.every > 2) refuse("moe.every", fmt::format("{}", moe.every), "1 or 2");
  const std::int64_t layers = (moe.encoder ? deck.model.encoder_layers / moe.every : 0) +
                              (moe.decoder ? deck.model.decoder_layers / moe.every : 0);
  // Of a loss that is the mean over a stack's layers, added up over stacks.
  const double coefficient = auxiliary_share(moe, layers) * double(layers) / stacks_of(moe.encoder, moe.decoder);
  const double scale = balance_scale(moe) / double(moe.experts);
  config["num_experts"] = moe.experts;
  config["expert_capacity"] = constant_capacity(deck);
  config["encoder_sparse_step"] = moe.encoder ? moe.every : 0;
  config["decoder_sparse_step"] = moe.decoder ? moe.every : 0;
  config["num_sparse_encoder_layers"] = moe.encoder ? deck.model.encoder_layers / moe.every : 0;
  config["num_sparse_decoder_layers"] = moe.decoder ? deck.model.decoder_layers / moe.every : 0;
  config["router_bias"] = false;
  config["router_jitter_noise"] = moe.jitter;
  config["router_dtype"] = "float32";
  config["router_ignore_padding_tokens"] = false;
  config["router_aux_loss_coef"] = moe.balance_coefficient * scale * coefficient;
  config["router_z_loss_coef"] = moe.z_coefficient * coefficient;
  config["add_router_probs"] = false;
}

}  // namespace

json config_of_deck(const Deck& given, bool bf16) {
  Deck deck = given;
  const ModelDeck& model = deck.model;
  if (model.family != "t5") refuse("model.family", model.family, "t5");
  const bool is_switch = deck.moe.router != "none";
  const bool gated = model.activation == "gated_gelu";
  if (is_switch && gated) refuse("model.activation", model.activation, "relu in an MoE model");
  // A stack too shallow for a sparse layer has none.
  deck.moe.encoder = deck.moe.encoder && model.encoder_layers >= deck.moe.every;
  deck.moe.decoder = deck.moe.decoder && model.decoder_layers >= deck.moe.every;
  json config = {
      {"architectures", {is_switch ? "SwitchTransformersForConditionalGeneration" : "T5ForConditionalGeneration"}},
      {"model_type", is_switch ? "switch_transformers" : "t5"},
      {"vocab_size", model.vocabulary},
      {"d_model", model.width},
      {"d_ff", model.hidden},
      {"d_kv", model.head_width},
      {"num_heads", model.heads},
      {"num_layers", model.encoder_layers},
      {"num_decoder_layers", model.decoder_layers},
      {"feed_forward_proj", gated ? "gated-gelu" : "relu"},
      {"is_gated_act", gated},
      {"dense_act_fn", gated ? "gelu_new" : "relu"},
      {"tie_word_embeddings", model.tied_logits},
      {"relative_attention_num_buckets", model.bias_buckets},
      {"relative_attention_max_distance", model.bias_max_distance},
      {"layer_norm_epsilon", model.norm_epsilon},
      {"dropout_rate", model.dropout},
      {"initializer_factor", 1.0},
      {"is_encoder_decoder", true},
      {"use_cache", true},
      {"pad_token_id", kPad},
      {"eos_token_id", kEos},
      {"decoder_start_token_id", kPad},
      {"torch_dtype", bf16 ? "bfloat16" : "float32"}};
  if (is_switch) add_switch_keys(config, deck);
  refuse_what_is_lost(deck, config);
  return config;
}

}  // namespace flanmoe
