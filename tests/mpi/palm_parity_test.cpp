// Decoder-only models against an independent implementation in PyTorch: fixtures of tools/palm_fixture.py.
#include <gtest/gtest.h>

#include <cmath>
#include <fstream>
#include <nlohmann/json.hpp>

#include "deck/table.hpp"
#include "model/model_state.hpp"
#include "model_fixture.hpp"

namespace flanmoe {
namespace {

using nlohmann::json;
using testing::TestModel;

json read_fixture(const std::string& name) {
  std::ifstream file(std::string(FLANMOE_SOURCE_DIR) + "/tests/fixtures/" + name);
  EXPECT_TRUE(file) << name;
  return json::parse(file);
}

Deck deck_of(const json& fixture) {
  Deck deck;
  for (const auto& [key, value] : fixture["deck"].items()) {
    const auto* parameter = deck_detail::find_parameter(key);
    EXPECT_NE(parameter, nullptr) << key;
    const auto problem = deck_detail::set_from_text(deck, *parameter, value.get<std::string>());
    EXPECT_FALSE(problem.has_value()) << key << ": " << *problem;
  }
  deck.batch.input_length = deck.batch.target_length = 16;
  return deck;
}

void append_segment(RaggedSide& side, const TokenIds& tokens) {
  side.segment_begin_S.push_back(std::int32_t(side.tokens()));
  side.segment_count_S.push_back(std::int32_t(tokens.size()));
  side.token_T.insert(side.token_T.end(), tokens.begin(), tokens.end());
}

PackedBatch batch_of(const json& fixture) {
  PackedBatch batch;
  for (RaggedSide* side : {&batch.encoder, &batch.decoder}) side->row_first.assign(1, 0);
  const auto end_row = [&] {
    for (RaggedSide* side : {&batch.encoder, &batch.decoder}) side->row_first.push_back(side->tokens());
    ++batch.rows;
  };
  for (const json& segment : fixture["segments"]) {
    while (batch.rows < segment["row"].get<std::int64_t>()) end_row();
    const auto target = segment["target"].get<TokenIds>();
    TokenIds shifted(target.size(), kPad);
    std::copy(target.begin(), target.end() - 1, shifted.begin() + 1);
    append_segment(batch.encoder, segment["input"].get<TokenIds>());
    append_segment(batch.decoder, shifted);
    batch.target_T.insert(batch.target_T.end(), target.begin(), target.end());
  }
  end_row();
  batch.step_rows = batch.rows;
  batch.step_encoder_tokens = batch.encoder.tokens();
  batch.step_target_tokens = batch.decoder.tokens();
  return batch;
}

double element(const Tensor& t, std::int64_t row, std::int64_t column) {
  return t.dtype == DType::f64 ? t.row<double>(row)[column] : double(t.row<float>(row)[column]);
}

void load_weights(TestModel& test, const json& fixture) {
  EXPECT_EQ(fixture["tensors"].size(), test.store.specs().size());
  for (std::size_t p = 0; p < test.store.specs().size(); ++p) {
    const ParameterSpec& spec = test.store.specs()[p];
    const auto values = fixture["tensors"][spec.name]["value"].get<std::vector<double>>();
    ASSERT_EQ(std::int64_t(values.size()), spec.global_size()) << spec.name;
    const Tensor weight = test.store.weight(int(p));
    for (std::size_t i = 0; i < values.size(); ++i) {
      if (weight.dtype == DType::f64) {
        weight.as<double>()[i] = values[i];
      } else {
        weight.as<float>()[i] = float(values[i]);
      }
    }
  }
}

double largest(const std::vector<double>& values) {
  double most = 0;
  for (const double v : values) most = std::max(most, std::abs(v));
  return most;
}

/// Logits of every target, from the decoder's output that the last forward left.
void expect_logits(TestModel& test, const json& fixture, double relative) {
  const auto expected = fixture["logits"].get<std::vector<double>>();
  const Model::State& s = test.model->state();
  const std::int64_t vocabulary = test.deck.model.vocabulary, width = test.deck.model.width;
  const auto targets = std::int64_t(expected.size()) / vocabulary;
  for (std::int64_t t = 0; t < targets; ++t) {
    for (std::int64_t v = 0; v < vocabulary; ++v) {
      double logit = 0;
      for (std::int64_t d = 0; d < width; ++d) {
        logit += element(s.work.sublayer.part_TD, t, d) * element(test.store.weight(s.logits()), v, d);
      }
      logit *= s.cross_entropy_shape(1.0).logit_scale;
      ASSERT_NEAR(logit, expected[std::size_t(t * vocabulary + v)], relative * largest(expected))
          << "target " << t << " token " << v;
    }
  }
}

void expect_gradients(TestModel& test, const json& fixture, double relative) {
  for (std::size_t p = 0; p < test.store.specs().size(); ++p) {
    const ParameterSpec& spec = test.store.specs()[p];
    const auto expected = fixture["tensors"][spec.name]["gradient"].get<std::vector<double>>();
    for (std::size_t i = 0; i < expected.size(); ++i) {
      const auto at = std::int64_t(i);
      const Tensor gradient = test.store.gradient(int(p), at / spec.matrix_size());
      const std::int64_t inside = at % spec.matrix_size();
      ASSERT_NEAR(element(gradient, inside / spec.cols, inside % spec.cols), expected[i], relative * largest(expected))
          << spec.name << " element " << i;
    }
  }
}

/// The numbers of the fixture have ten digits, so that double is compared far below the errors of fp32.
void expect_parity(const std::string& name, const std::string& device, DType compute, double logits, double gradients) {
  SCOPED_TRACE(name + " on " + device);
  const Communicator world = Communicator::world();
  const Communicator self = world.split(world.rank(), 0, "alone");
  const json fixture = read_fixture(name);
  const Deck deck = deck_of(fixture);
  const PackedBatch batch = batch_of(fixture);
  const double loss = fixture["loss"];

  TestModel evaluated(deck, self, 1, device, compute, testing::limits_of(deck, 2), false);
  load_weights(evaluated, fixture);
  StepStatistics statistics;
  evaluated.model->evaluate(evaluated.context, batch, {}, statistics);
  expect_logits(evaluated, fixture, logits);

  TestModel trained(deck, self, 1, device, compute, testing::limits_of(deck, 2));
  load_weights(trained, fixture);
  trained.forget_gradients();
  EXPECT_NEAR(trained.loss(batch), loss, logits * loss);
  expect_gradients(trained, fixture, gradients);
}

TEST(PalmParity, DenseCausalWithMultiQueryAttention) {
  expect_parity("palm_causal.json", "reference", DType::f64, 1e-8, 1e-8);
  expect_parity("palm_causal.json", "cpu", DType::f32, 2e-5, 1e-4);
}

TEST(PalmParity, SparsePrefixWithGroupedQueryAttention) {
  expect_parity("palm_prefix_moe.json", "reference", DType::f64, 1e-8, 1e-8);
  expect_parity("palm_prefix_moe.json", "cpu", DType::f32, 2e-5, 1e-4);
}

}  // namespace
}  // namespace flanmoe
