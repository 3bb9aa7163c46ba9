// The presets: named sets of defaults (paper facts 1 and 4). Sparse ones set every key on which published
// implementations differ: switch, gshard and st_moe take the side of their papers and of Mesh TensorFlow, in which
// their models were trained, token_choice and expert_choice that of flaxformer. Evaluation draws nothing at random,
// unlike Mesh TensorFlow: where second experts are drawn in training, those that would be likely are taken, and all of
// them with the threshold 1/2 of gshard, which no second weight exceeds.
#include "deck/table.hpp"

namespace flanmoe::deck_detail {
namespace {

using Values = std::vector<PresetValue>;

Values operator+(Values a, const Values& b) {
  a.insert(a.end(), b.begin(), b.end());
  return a;
}

Values t5_1_0() { return {{"model.activation", "relu"}, {"model.tied_logits", "true"}}; }
Values t5_1_1() { return {{"model.activation", "gated_gelu"}, {"model.tied_logits", "false"}}; }
Values palm() {
  return {{"model.family", "palm"},      {"model.encoder_layers", "0"}, {"model.kv_heads", "1"},
          {"model.attention", "causal"}, {"model.norm", "layer"},       {"model.activation", "gated_swish"},
          {"model.tied_logits", "true"}};
}
Values dense() { return {{"moe.router", "none"}}; }

/// What all sparse presets share.
Values sparse() {
  return {{"model.init_scale", "0.1"},     {"model.multiplicative_bias", "false"},
          {"moe.min_capacity", "4"},       {"moe.decoder_router", "top_k"},
          {"moe.shared_experts", "0"},     {"moe.balance_coefficient", "0.01"},
          {"moe.balance_scale", "switch"}, {"moe.bias_rate", "0"},
          {"moe.forced_balance", "false"}, {"moe.router_init", "0.02"}};
}

Values mesh_tensorflow() {
  return {{"moe.capacity_rounding", "down"},
          {"moe.priority", "token_order"},
          {"moe.decoder_priority", "token_order"},
          {"moe.balance_choices", "first"},
          {"moe.auxiliary_over_layers", "sum"}};
}

Values flaxformer() {
  return {{"moe.top_k", "2"},
          {"moe.extra_feed_forward", "false"},
          {"moe.capacity_times_k", "false"},
          {"moe.renormalize", "false"},
          {"moe.second_policy", "all"},
          {"moe.second_policy_eval", "all"},
          {"moe.second_threshold", "0.2"},
          {"moe.jitter", "0"},
          {"moe.z_coefficient", "0"},
          {"moe.capacity_rounding", "nearest"},
          {"moe.balance_choices", "all"},
          {"moe.auxiliary_over_layers", "mean"}};
}

Values switch_router() {
  return {{"moe.router", "top_k"},
          {"moe.top_k", "1"},
          {"moe.every", "2"},
          {"moe.extra_feed_forward", "false"},
          {"moe.capacity_factor", "1.25"},
          {"moe.capacity_factor_eval", "2"},
          {"moe.capacity_times_k", "false"},
          {"moe.renormalize", "false"},
          {"moe.second_policy", "all"},
          {"moe.second_policy_eval", "all"},
          {"moe.second_threshold", "0.2"},
          {"moe.jitter", "0.01"},
          {"moe.z_coefficient", "0"}};
}

Values gshard_router() {
  return {{"moe.router", "top_k"},
          {"moe.top_k", "2"},
          {"moe.every", "2"},
          {"moe.extra_feed_forward", "false"},
          {"moe.capacity_factor", "1"},
          {"moe.capacity_factor_eval", "1"},
          {"moe.capacity_times_k", "true"},
          {"moe.renormalize", "true"},
          {"moe.second_policy", "random"},
          {"moe.second_policy_eval", "all"},
          {"moe.second_threshold", "0.5"},
          {"moe.jitter", "0"},
          {"moe.z_coefficient", "0"}};
}

Values st_moe_router() {
  return {{"moe.router", "top_k"},
          {"moe.top_k", "2"},
          {"moe.every", "4"},
          {"moe.extra_feed_forward", "true"},
          {"moe.capacity_factor", "1.25"},
          {"moe.capacity_factor_eval", "2"},
          {"moe.capacity_times_k", "false"},
          {"moe.renormalize", "true"},
          {"moe.second_policy", "random"},
          {"moe.second_policy_eval", "threshold"},
          {"moe.second_threshold", "0.2"},
          {"moe.jitter", "0"},
          {"moe.z_coefficient", "0.001"}};
}

Values token_choice_router() {
  return {{"moe.router", "top_k"},         {"moe.every", "4"},
          {"moe.capacity_factor", "1.25"}, {"moe.capacity_factor_eval", "2"},
          {"moe.priority", "probability"}, {"moe.decoder_priority", "token_order"}};
}

Values expert_choice_router() {
  return {{"moe.router", "expert_choice"}, {"moe.every", "2"},
          {"moe.capacity_factor", "1"},    {"moe.capacity_factor_eval", "1"},
          {"moe.priority", "token_order"}, {"moe.decoder_priority", "token_order"}};
}

}  // namespace

const std::vector<Preset>& presets() {
  static const std::vector<Preset> all = {
      {"custom", "nothing: every key has its own default", {}},
      {"t5_1_0", "T5 1.0, dense", t5_1_0() + dense()},
      {"t5_1_1", "T5 1.1, dense", t5_1_1() + dense()},
      {"palm",
       "PaLM, dense unless moe.router is set: SwiGLU, multi-query attention, LayerNorm without bias, shared embedding",
       palm()},
      {"switch",
       "Switch Transformer: each token goes to one expert; the router's input is jittered as in the paper's code (the "
       "T5X configurations have moe.jitter = 0 and average over layers)",
       t5_1_0() + sparse() + mesh_tensorflow() + switch_router()},
      {"gshard",
       "GShard top-2: weights renormalised, the second expert by chance, slots for 2 choices a token; the balance "
       "loss in the scale of Switch, so that its coefficient is of the same size",
       t5_1_1() + sparse() + mesh_tensorflow() + gshard_router()},
      {"token_choice",
       "top-2 as in flaxformer's configurations: raw probabilities, both choices claim slots that are not counted per "
       "choice, surer tokens first in the encoder",
       t5_1_1() + sparse() + flaxformer() + token_choice_router()},
      {"expert_choice",
       "expert choice as in flaxformer's configurations: in the encoder each expert takes its most probable tokens, in "
       "the decoder tokens choose two experts",
       t5_1_1() + sparse() + flaxformer() + expert_choice_router()},
      {"st_moe",
       "ST-MoE: top-2 with renormalised weights, the second expert by chance, router z-loss, a dense feed-forward "
       "behind each sparse one",
       t5_1_1() + sparse() + mesh_tensorflow() + st_moe_router()},
  };
  return all;
}

}  // namespace flanmoe::deck_detail
