#include "train/model_size.hpp"

#include <fmt/format.h>

#include <algorithm>

#include "model/freeze.hpp"
#include "moe/routing.hpp"
#include "train/flops.hpp"

namespace flanmoe {
namespace {

constexpr double kPairInputs = 512, kPairTargets = 114;

/// "7.42 B", "223 M", "88.2 k": three digits.
std::string rounded(double value) {
  for (const auto& [unit, name] : {std::pair{1e12, " T"}, {1e9, " B"}, {1e6, " M"}, {1e3, " k"}}) {
    if (value >= 0.9995 * unit) return fmt::format("{:.3g}{}", value / unit, name);
  }
  return fmt::format("{}", value);
}

/// Experts that a token is sent to: k; where experts choose, as many as they have slots for it on average.
double copies_per_token(const MoeDeck& moe, bool encoder) {
  if (routing_of(moe, encoder).expert_choice) return std::min(moe.capacity_factor, double(moe.experts));
  return double(moe.second_policy == "none" ? 1 : moe.top_k);
}

}  // namespace

double published_pair_flops(const ModelDeck& model, const MoeDeck& moe) {
  const auto D = double(model.width), Q = double(model.heads * model.head_width), F = double(model.hidden);
  const double projection = D * Q;
  const double feed_forward = (model.gated() ? 3 : 2) * D * F;
  const auto feed_forwards = [&](bool encoder, bool in_stack, std::int64_t layers) {
    const auto sparse = double(sparse_layers(moe, in_stack, layers));
    const double beside = double(moe.shared_experts) + (moe.extra_feed_forward ? 1 : 0);
    return feed_forward * (double(layers) - sparse + sparse * (copies_per_token(moe, encoder) + beside));
  };
  const auto encoder = double(model.encoder_layers), decoder = double(model.decoder_layers);
  const double of_input = encoder * 4 * projection + feed_forwards(true, moe.encoder, model.encoder_layers);
  const double of_target = decoder * 8 * projection + feed_forwards(false, moe.decoder, model.decoder_layers);
  const double scores =
      encoder * kPairInputs * kPairInputs + decoder * (kPairTargets * kPairTargets + kPairInputs * kPairTargets);
  return 2 *
         (kPairInputs * of_input + kPairTargets * of_target + kPairTargets * D * double(model.vocabulary) + Q * scores);
}

ModelSize model_size(const Deck& deck) {
  ModelSize size;
  for (const ParameterSpec& spec : training_parameters(deck)) {
    const std::int64_t all = spec.global_size();
    size.total += all;
    if (spec.placement == Placement::expert) {
      const double copies = copies_per_token(deck.moe, spec.name.starts_with("encoder/"));
      size.active += std::int64_t(copies * double(spec.matrix_size()) + 0.5);
    } else {
      size.active += all;
    }
    if (spec.trained) size.trained += all;
  }
  if (!deck.model.decoder_only())
    size.published_flops = published_pair_flops(deck.model, deck.moe) / (kPairInputs + kPairTargets);
  const WorkCounts row = full_row(deck);
  constexpr double kForwardAndBackward = 3;
  size.counted_flops = training_flops(deck.model, deck.moe, row).total() / kForwardAndBackward /
                       (row.encoder_tokens + row.decoder_tokens);
  return size;
}

std::string describe_size(const Deck& deck) {
  const ModelSize size = model_size(deck);
  std::string text = fmt::format("parameters: {} ({}), active per token: {} ({})", rounded(double(size.total)),
                                 size.total, rounded(double(size.active)), size.active);
  if (size.trained != size.total)
    text += fmt::format(", trained: {} ({})", rounded(double(size.trained)), size.trained);
  text += "\nforward GFLOP per token: ";
  if (size.published_flops > 0) {
    text += fmt::format("{:#.4g} as published tables count ({} + {} tokens), ", size.published_flops / 1e9, kPairInputs,
                        kPairTargets);
  }
  return text + fmt::format("{:#.4g} as this program counts (full rows of {} + {} tokens)\n", size.counted_flops / 1e9,
                            deck.batch.input_length, deck.batch.target_length);
}

}  // namespace flanmoe
