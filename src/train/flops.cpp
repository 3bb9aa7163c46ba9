#include "train/flops.hpp"

#include "moe/routing.hpp"

namespace flanmoe {
namespace {

/// One segment of a decoder-only model: pad, inputs and targets but the last; see model/joined.hpp.
WorkCounts joined_segment(const ModelDeck& model, double inputs, double targets) {
  WorkCounts work;
  const double all = inputs + targets, prefix = inputs + 1;
  work.decoder_tokens = all;
  work.target_tokens = targets;
  work.decoder_pairs = all * (all + 1) / 2;
  if (model.attention == "prefix") work.decoder_pairs += prefix * (prefix - 1) / 2;
  return work;
}

/// One segment of an encoder-decoder model.
WorkCounts segment(double inputs, double targets) {
  return {inputs, targets, targets, inputs * inputs, targets * (targets + 1) / 2, targets * inputs, 0};
}

}  // namespace

std::array<double, WorkCounts::kNumbers> WorkCounts::pack() const {
  return {encoder_tokens, decoder_tokens, target_tokens, encoder_pairs, decoder_pairs, cross_pairs, routed_copies};
}

WorkCounts& WorkCounts::operator+=(const WorkCounts& other) {
  auto sum = pack();
  const auto more = other.pack();
  for (std::size_t i = 0; i < sum.size(); ++i) sum[i] += more[i];
  return *this = unpack(sum.data());
}

WorkCounts WorkCounts::unpack(const double* numbers) {
  return {numbers[0], numbers[1], numbers[2], numbers[3], numbers[4], numbers[5], numbers[6]};
}

WorkCounts count_work(const ModelDeck& model, const PackedBatch& batch) {
  WorkCounts work;
  for (std::size_t s = 0; s < batch.encoder.segment_count_S.size(); ++s) {
    const double inputs = batch.encoder.segment_count_S[s], targets = batch.decoder.segment_count_S[s];
    work += model.decoder_only() ? joined_segment(model, inputs, targets) : segment(inputs, targets);
  }
  return work;
}

namespace {

/// Copies that experts get of a row of so many tokens in a group of such rows: every choice, or all slots of the
/// experts that choose.
double copies_of_full_row(const MoeDeck& moe, bool encoder, std::int64_t tokens) {
  const Routing routing = routing_of(moe, encoder);
  if (!routing.expert_choice) return double(moe.second_policy == "none" ? 1 : moe.top_k) * double(tokens);
  const std::int64_t taken = expert_capacity(moe, routing, /*training=*/true, moe.group_rows * tokens);
  return double(moe.experts * taken) / double(moe.group_rows);
}

}  // namespace

WorkCounts full_row(const Deck& deck) {
  double inputs = double(deck.batch.input_length), targets = double(deck.batch.target_length);
  if (deck.data.objective == "causal_lm") {
    targets += inputs;
    inputs = 0;
  }
  const MoeDeck& moe = deck.moe;
  WorkCounts work = deck.model.decoder_only() ? joined_segment(deck.model, inputs, targets) : segment(inputs, targets);
  work.routed_copies = double(sparse_layers(moe, moe.encoder, deck.model.encoder_layers)) *
                           copies_of_full_row(moe, true, std::int64_t(work.encoder_tokens)) +
                       double(sparse_layers(moe, moe.decoder, deck.model.decoder_layers)) *
                           copies_of_full_row(moe, false, std::int64_t(work.decoder_tokens));
  return work;
}

std::int64_t sparse_layers(const MoeDeck& moe, bool enabled, std::int64_t layers) {
  return moe.router != "none" && enabled ? layers / moe.every : 0;
}

TrainingFlops training_flops(const ModelDeck& model, const MoeDeck& moe, const WorkCounts& work) {
  constexpr double kPerMultiplyAdd = 2, kForwardAndBackward = 3;
  const auto D = double(model.width), F = double(model.hidden), Q = double(model.heads * model.head_width);
  const auto KV = double(model.key_heads() * model.head_width);
  const auto E = double(moe.experts), V = double(model.vocabulary);
  const auto layers_enc = double(model.encoder_layers), layers_dec = double(model.decoder_layers);
  const auto sparse_enc = double(sparse_layers(moe, moe.encoder, model.encoder_layers));
  const auto sparse_dec = double(sparse_layers(moe, moe.decoder, model.decoder_layers));

  const double feed_forward = (model.gated() ? 3 : 2) * D * F;
  const double self_attention = 2 * D * Q + 2 * D * KV;                // query, output, key, value
  const double cross_of_token = model.decoder_only() ? 0 : 2 * D * Q;  // query, output
  const double cross_of_input = 2 * D * KV;  // key, value: once per encoder token and decoder layer
  const double sparse = D * E + (moe.extra_feed_forward ? feed_forward : 0);  // router, and what follows
  const double shared = double(moe.shared_experts) * feed_forward;

  TrainingFlops flops;
  flops.encoder = work.encoder_tokens *
                  (layers_enc * self_attention + (layers_enc - sparse_enc) * feed_forward + sparse_enc * sparse);
  flops.decoder = work.decoder_tokens * (layers_dec * (self_attention + cross_of_token) +
                                         (layers_dec - sparse_dec) * feed_forward + sparse_dec * sparse) +
                  work.encoder_tokens * layers_dec * cross_of_input;
  flops.experts = work.routed_copies * feed_forward +
                  (work.encoder_tokens * sparse_enc + work.decoder_tokens * sparse_dec) * shared;
  flops.attention = 2 * Q * (layers_enc * work.encoder_pairs + layers_dec * (work.decoder_pairs + work.cross_pairs));
  flops.logits = work.target_tokens * D * V;
  for (double* part : {&flops.encoder, &flops.decoder, &flops.experts, &flops.attention, &flops.logits}) {
    *part *= kPerMultiplyAdd * kForwardAndBackward;
  }
  return flops;
}

}  // namespace flanmoe
