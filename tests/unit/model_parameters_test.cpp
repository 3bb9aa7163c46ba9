// The parameter set against published model sizes, and the capacity rule.
#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <set>

#include "model/model.hpp"
#include "model/tensors.hpp"
#include "moe/routing.hpp"

namespace flanmoe {
namespace {

std::int64_t count(const ModelDeck& model, const MoeDeck& moe) {
  std::int64_t sum = 0;
  std::set<std::string> names;
  for (const ParameterSpec& spec : model_parameters(model, moe)) {
    EXPECT_TRUE(names.insert(spec.name).second) << spec.name << " stands twice";
    sum += spec.global_size();
  }
  return sum;
}

ModelDeck base_1_1() {
  ModelDeck model;
  model.vocabulary = 32128;
  model.width = 768;
  model.hidden = 2048;
  model.heads = 12;
  model.head_width = 64;
  model.encoder_layers = model.decoder_layers = 12;
  return model;
}

TEST(ModelParameters, T5BaseHas248Million) { EXPECT_EQ(std::llround(double(count(base_1_1(), {})) * 1e-6), 248); }

TEST(ModelParameters, T5BaseOfVersion10Has223Million) {
  ModelDeck model = base_1_1();
  model.hidden = 3072;
  model.activation = "relu";
  model.tied_logits = true;
  EXPECT_EQ(std::llround(double(count(model, {})) * 1e-6), 223);
}

TEST(ModelParameters, SwitchBaseWith128ExpertsHas7Point42Billion) {
  ModelDeck model = base_1_1();
  model.hidden = 3072;
  model.activation = "relu";
  model.tied_logits = true;
  MoeDeck moe;
  moe.router = "top_k";
  moe.experts = 128;
  EXPECT_EQ(std::llround(double(count(model, moe)) * 1e-7), 742);
}

TEST(ModelParameters, TokenChoiceBaseHas2Point03Billion) {
  MoeDeck moe;
  moe.router = "top_k";
  moe.experts = 64;
  moe.every = 4;
  EXPECT_EQ(std::llround(double(count(base_1_1(), moe)) * 1e-7), 203);
}

/// PaLM with a vocabulary of 256,000 (paper facts 1.2).
ModelDeck palm(std::int64_t layers, std::int64_t heads, std::int64_t width) {
  ModelDeck model;
  model.family = "palm";
  model.vocabulary = 256000;
  model.width = width;
  model.hidden = 4 * width;
  model.heads = heads;
  model.kv_heads = 1;
  model.head_width = 256;
  model.encoder_layers = 0;
  model.decoder_layers = layers;
  model.activation = "gated_swish";
  model.norm = "layer";
  model.tied_logits = true;
  return model;
}

/// In the matrices. The published 540.35 billion leave out the scales of the norms, with which they would be 540.356.
std::int64_t count_matrices(const ModelDeck& model) {
  return count(model, {}) - (model.decoder_layers + 1) * model.width;
}

TEST(ModelParameters, PalmHas8Point63And62Point50And540Point35Billion) {
  EXPECT_EQ(std::llround(double(count_matrices(palm(32, 16, 4096))) * 1e-7), 863);
  EXPECT_EQ(std::llround(double(count_matrices(palm(64, 32, 8192))) * 1e-7), 6250);
  EXPECT_EQ(std::llround(double(count_matrices(palm(118, 48, 18432))) * 1e-7), 54035);
}

TEST(ModelTensors, OfADecoderOnlyModelHaveOneNormALayerAndNoPositions) {
  const ModelDeck model = palm(2, 3, 8);
  MoeDeck moe;
  moe.router = "top_k";
  moe.experts = 4;
  std::vector<std::string> names;
  for (const ParameterSpec& spec : model_parameters(model, moe)) names.push_back(spec.name);
  const std::vector<std::string> expected{"embedding",
                                          "decoder/layer_00/norm",
                                          "decoder/layer_00/self_attention/query",
                                          "decoder/layer_00/self_attention/key",
                                          "decoder/layer_00/self_attention/value",
                                          "decoder/layer_00/self_attention/output",
                                          "decoder/layer_00/feed_forward/gate",
                                          "decoder/layer_00/feed_forward/up",
                                          "decoder/layer_00/feed_forward/down",
                                          "decoder/layer_01/norm",
                                          "decoder/layer_01/self_attention/query",
                                          "decoder/layer_01/self_attention/key",
                                          "decoder/layer_01/self_attention/value",
                                          "decoder/layer_01/self_attention/output",
                                          "decoder/layer_01/feed_forward/router",
                                          "decoder/layer_01/feed_forward/expert_gate",
                                          "decoder/layer_01/feed_forward/expert_up",
                                          "decoder/layer_01/feed_forward/expert_down",
                                          "decoder/final_norm"};
  EXPECT_EQ(names, expected);
}

TEST(ModelTensors, IndicesNameTheirSpecifications) {
  ModelDeck model = base_1_1();
  MoeDeck moe;
  moe.router = "top_k";
  const auto specs = model_parameters(model, moe);
  const auto tensors = model_tensors(model, moe);
  EXPECT_EQ(specs[std::size_t(tensors.decoder.layers[3].moe.experts.down)].name,
            "decoder/layer_03/feed_forward/expert_down");
  EXPECT_EQ(specs[std::size_t(tensors.encoder.layers[0].self.query_DQ)].name, "encoder/layer_00/self_attention/query");
  EXPECT_EQ(specs[std::size_t(tensors.logits_DV)].cols, model.vocabulary);
  EXPECT_TRUE(tensors.encoder.layers[1].sparse);
  EXPECT_FALSE(tensors.encoder.layers[2].sparse);
}

TEST(ModelParameters, StMoe32BHas269Point1Billion) {
  ModelDeck model = base_1_1();
  model.width = 5120;
  model.hidden = 20480;
  model.heads = 64;
  model.head_width = 128;
  model.encoder_layers = model.decoder_layers = 24;
  MoeDeck moe;
  moe.router = "top_k";
  moe.experts = 64;
  moe.every = 4;
  moe.extra_feed_forward = true;
  EXPECT_EQ(std::llround(double(count(model, moe)) * 1e-8), 2691);
}

TEST(ModelParameters, ExpertChoiceBaseHas3Point82Billion) {
  MoeDeck moe;
  moe.router = "expert_choice";
  moe.experts = 64;
  EXPECT_EQ(std::llround(double(count(base_1_1(), moe)) * 1e-7), 382);
}

TEST(ModelParameters, OptionsAddTheirTensors) {
  ModelDeck model = base_1_1();
  MoeDeck moe;
  moe.router = "top_k";
  moe.experts = 8;
  const std::int64_t D = 768, F = 2048, plain = count(model, moe);
  moe.bias_rate = 0.001;
  EXPECT_EQ(count(model, moe) - plain, 12 * 8);
  moe.router = "expert_choice";  // no bias where experts choose
  EXPECT_EQ(count(model, moe) - plain, 6 * 8);
  moe = MoeDeck{.router = "top_k", .experts = 8, .shared_experts = 2};
  EXPECT_EQ(count(model, moe) - plain, 12 * 3 * D * 2 * F);
  moe = MoeDeck{.router = "top_k", .experts = 8, .extra_feed_forward = true};
  EXPECT_EQ(count(model, moe) - plain, 12 * (D + 3 * D * F));
  moe.shared_experts = 3;
  model.multiplicative_bias = true;
  // Factors of 12 dense layers, and in 12 sparse ones of 8 experts, the shared experts and the extra feed-forward.
  EXPECT_EQ(count(model, moe) - plain, 12 * (D + 3 * D * F) + 12 * 3 * D * 3 * F + 12 * F + 12 * (8 + 3 + 1) * F);
}

std::int64_t capacity(const MoeDeck& moe, std::int64_t tokens, bool training = true, bool encoder = true) {
  return expert_capacity(moe, routing_of(moe, encoder), training, tokens);
}

TEST(Capacity, RoundsHalfToEvenOrDownAndKeepsTheMinimum) {
  MoeDeck moe;
  moe.router = "top_k";
  moe.top_k = 2;
  EXPECT_EQ(capacity(moe, 512), 80);
  EXPECT_EQ(capacity(moe, 512, false), 128);
  EXPECT_EQ(capacity(moe, 8), 4);  // 1.25 -> minimum
  moe.capacity_factor = 1.0;
  moe.min_capacity = 1;
  EXPECT_EQ(capacity(moe, 20), 2);  // 2.5 -> 2
  EXPECT_EQ(capacity(moe, 28), 4);  // 3.5 -> 4
  EXPECT_EQ(capacity(moe, 23), 3);  // 2.875 -> 3
  moe.capacity_rounding = "down";
  EXPECT_EQ(capacity(moe, 28), 3);
  EXPECT_EQ(capacity(moe, 23), 2);
  moe.capacity_times_k = true;
  EXPECT_EQ(capacity(moe, 28), 7);  // 2 * 28 / 8
  moe.capacity_factor = 0.0;
  EXPECT_EQ(capacity(moe, 8), std::numeric_limits<std::int64_t>::max());
}

TEST(Capacity, ExpertsThatChooseTakeNoMoreThanThereAre) {
  MoeDeck moe;
  moe.router = "expert_choice";
  moe.capacity_factor = 2.0;
  moe.capacity_times_k = true;  // of the decoder
  moe.top_k = 2;
  EXPECT_EQ(capacity(moe, 512), 128);
  EXPECT_EQ(capacity(moe, 512, true, false), 256);
  EXPECT_EQ(capacity(moe, 3), 1) << "no minimum but one";
  EXPECT_EQ(capacity(moe, 16, false), 4);
  EXPECT_EQ(capacity(moe, 0), 0);
  moe.capacity_factor = 16.0;
  EXPECT_EQ(capacity(moe, 3), 3);
  moe.capacity_factor = 2.0;
  EXPECT_EQ(capacity(moe, 3, true, false), 4);
}

TEST(Capacity, BufferBoundHoldsForTheFullestCase) {
  MoeDeck moe;
  moe.router = "top_k";
  moe.experts = 8;
  moe.top_k = 2;
  const auto limits = [&](std::int64_t ranks, std::int64_t tokens, std::int64_t groups) {
    return row_limits(moe, routing_of(moe, true), true, ranks, tokens, groups);
  };
  // Four ranks of 4 groups of 128 tokens: every expert full in every group.
  const std::int64_t slots = 4 * capacity(moe, 128);
  EXPECT_GE(limits(4, 4 * 128, 4).received, 4 * slots * 2);
  EXPECT_LE(limits(4, 4 * 128, 4).received, 4 * 4 * 128 * 2);
  EXPECT_GE(limits(4, 4 * 128, 4).copies, 8 * slots);
  EXPECT_LE(limits(4, 4 * 128, 4).copies, 4 * 128 * 2);
  moe.capacity_factor = 0.0;
  EXPECT_EQ(limits(4, 512, 4).received, 4 * 512 * 2);
  EXPECT_EQ(limits(4, 512, 4).copies, 512 * 2);
  moe.buffer_factor = 1.5;
  EXPECT_EQ(limits(4, 512, 4).received, 1536);
  // Experts choose: a token may go to all of them, and all of them are full.
  moe.router = "expert_choice";
  moe.capacity_factor = 1.0;
  EXPECT_GE(limits(4, 512, 4).copies, 8 * 4 * capacity(moe, 128));
  EXPECT_LE(limits(4, 512, 4).copies, 8 * (512 / 8 + 4 * 5));
  EXPECT_EQ(limits(1, 2, 2).copies, 2 * 8) << "no more than every token to every expert";
  EXPECT_GE(limits(4, 512, 4).received, 4 * 2 * 4 * capacity(moe, 128));
}

TEST(AuxiliaryLosses, AreAveragedOrAddedUpAndScaledAsTheDeckSays) {
  StepStatistics statistics;
  statistics.moe.resize(3);
  for (MoeLayerStatistics& layer : statistics.moe) {
    layer.balance = 2.0;
    layer.z = 4.0;
  }
  MoeDeck moe;
  moe.balance_coefficient = 0.5;
  moe.z_coefficient = 0.25;
  EXPECT_DOUBLE_EQ(auxiliary_loss(statistics, moe), 2.0);
  moe.auxiliary_over_layers = "sum";
  EXPECT_DOUBLE_EQ(auxiliary_loss(statistics, moe), 6.0);
  EXPECT_EQ(auxiliary_loss({}, moe), 0.0);
  EXPECT_EQ(balance_scale(moe), 8.0);
  moe.balance_scale = "gshard";
  EXPECT_EQ(balance_scale(moe), 0.125);
}

}  // namespace
}  // namespace flanmoe
