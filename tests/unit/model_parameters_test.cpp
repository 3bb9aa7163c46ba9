// The parameter set against published model sizes, and the capacity rule.
#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <set>

#include "model/model.hpp"
#include "model/tensors.hpp"
#include "moe/dispatcher.hpp"
#include "moe/router.hpp"

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

TEST(Capacity, RoundsHalfToEvenAndKeepsTheMinimum) {
  EXPECT_EQ(expert_capacity(1.25, 512, 8, 4), 80);
  EXPECT_EQ(expert_capacity(1.0, 20, 8, 1), 2);  // 2.5 -> 2
  EXPECT_EQ(expert_capacity(1.0, 28, 8, 1), 4);  // 3.5 -> 4
  EXPECT_EQ(expert_capacity(1.25, 8, 8, 4), 4);  // 1.25 -> minimum
  EXPECT_EQ(expert_capacity(0.0, 8, 8, 4), std::numeric_limits<std::int64_t>::max());
}

TEST(Capacity, BufferBoundHoldsForTheFullestCase) {
  MoeDeck moe;
  moe.experts = 8;
  moe.top_k = 2;
  moe.capacity_factor = 1.25;
  moe.min_capacity = 4;
  // Four ranks of 4 groups of 128 tokens: every expert full in every group.
  const std::int64_t full = 4 * 4 * expert_capacity(1.25, 128, 8, 4) * 2;
  EXPECT_GE(received_rows_bound(moe, true, 4, 4 * 128, 4), full);
  EXPECT_LE(received_rows_bound(moe, true, 4, 4 * 128, 4), 4 * 4 * 128 * 2);
  moe.capacity_factor = 0.0;
  EXPECT_EQ(received_rows_bound(moe, true, 4, 512, 4), 4 * 512 * 2);
  moe.buffer_factor = 1.5;
  EXPECT_EQ(received_rows_bound(moe, true, 4, 512, 4), 1536);
}

}  // namespace
}  // namespace flanmoe
