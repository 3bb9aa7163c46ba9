// Logits, loss, every gradient and greedy answers of models that transformers (PyTorch) computed: tools/parity.py.
#include <gtest/gtest.h>

#include <cmath>

#include "exchange/json_file.hpp"
#include "exchange/safetensors.hpp"
#include "exchange_fixture.hpp"
#include "kernels/relative_bias.hpp"
#include "model/model_state.hpp"
#include "model_fixture.hpp"

namespace flanmoe {
namespace {

using testing::fixture;
using testing::TestModel;
using Rows = std::vector<TokenIds>;

constexpr double kLogits = 2e-5, kGradients = 1e-4, kLoss = 5e-6;  // of the largest element

class Parity : public ::testing::Test {
 protected:
  void SetUp() override {
    if (Communicator::world().size() > 1) GTEST_SKIP() << "the same on one rank";
  }
};

/// What transformers was given, and where its answers are.
struct Case {
  std::string folder;
  ForeignModel weights;
  nlohmann::json json;

  explicit Case(const std::string& name)
      : folder(fixture(name)), weights(open_hf(folder)), json(read_json(folder + "/case.json")) {}
  Rows rows(const char* key) const { return json.at(key).get<Rows>(); }
  Deck deck() const {
    Deck deck = weights.deck();
    deck.model.z_loss = json.at("z_loss").get<double>();
    deck.moe.capacity_factor = deck.moe.capacity_factor_eval = 0.0;
    deck.moe.jitter = 0.0;  // transformers was in evaluation mode
    return deck;
  }
};

/// All examples of a case; `per_row` of them packed into each row.
PackedBatch batch_of(const Case& c, std::size_t per_row) {
  const Rows inputs = c.rows("inputs"), labels = c.rows("labels");
  PackedBatch batch;
  batch.encoder.row_first.assign(1, 0);
  batch.decoder.row_first.assign(1, 0);
  const auto append = [](RaggedSide& side, const TokenIds& ids) {
    side.segment_begin_S.push_back(std::int32_t(side.tokens()));
    side.segment_count_S.push_back(std::int32_t(ids.size()));
    side.token_T.insert(side.token_T.end(), ids.begin(), ids.end());
  };
  for (std::size_t i = 0; i < inputs.size(); ++i) {
    TokenIds shifted(labels[i].size(), kPad);
    std::copy(labels[i].begin(), labels[i].end() - 1, shifted.begin() + 1);
    append(batch.encoder, inputs[i]);
    append(batch.decoder, shifted);
    batch.target_T.insert(batch.target_T.end(), labels[i].begin(), labels[i].end());
    batch.segment_row_S.push_back(std::int32_t(batch.encoder.row_first.size()) - 1);
    batch.segment_task_S.push_back(0);
    if ((i + 1) % per_row != 0 && i + 1 < inputs.size()) continue;
    batch.encoder.row_first.push_back(batch.encoder.tokens());
    batch.decoder.row_first.push_back(batch.decoder.tokens());
  }
  batch.rows = batch.step_rows = std::int64_t(batch.encoder.row_first.size()) - 1;
  batch.step_encoder_tokens = batch.encoder.tokens();
  batch.step_target_tokens = batch.decoder.tokens();
  batch.step_segments = std::int64_t(inputs.size());
  return batch;
}

void load(TestModel& test, const ForeignModel& model) {
  std::vector<float> values;
  for (std::size_t p = 0; p < model.specs().size(); ++p) {
    const ParameterSpec& spec = model.specs()[p];
    values.resize(std::size_t(spec.matrix_size()));
    const Tensor matrix = make_tensor(values.data(), spec.rows, spec.cols);
    for (std::int64_t e = 0; e < spec.experts; ++e) {
      model.read(int(p), e, matrix);
      test.kernels.elementwise.convert(test.context, test.store.weight(int(p)).matrix(e), matrix);
    }
  }
}

/// Largest difference over the largest expected element; 0 for equal tensors.
double relative_difference(std::span<const float> found, std::span<const float> expected) {
  double difference = 0, largest = 0;
  for (std::size_t i = 0; i < expected.size(); ++i) {
    difference = std::max(difference, std::abs(double(found[i]) - double(expected[i])));
    largest = std::max(largest, std::abs(double(expected[i])));
  }
  return difference == 0 ? 0 : difference / largest;
}

std::vector<float> stored_logits(const std::string& path) {
  const Safetensors file(path);
  std::vector<float> logits(std::size_t(file.tensors().at("logits").size()));
  file.read("logits", logits);
  return logits;
}

/// Logits of the last forward's target tokens, from the decoder's output.
std::vector<float> logits_of(TestModel& test, std::int64_t tokens) {
  Model::State& s = test.model->state();
  const CrossEntropyShape shape = s.cross_entropy_shape(1.0);
  std::vector<float> logits(std::size_t(tokens * test.deck.model.vocabulary));
  const Tensor out = first_rows(s.decoder->activations().out_TD, tokens);
  kernels_for("reference")
      .matmul.product(test.context, make_tensor(logits.data(), tokens, test.deck.model.vocabulary), out, Transpose::no,
                      test.store.weight(s.logits()), shape.transpose_w, 0.0F);
  for (float& logit : logits) logit *= float(shape.logit_scale);
  return logits;
}

struct Computed {
  double loss = 0;
  std::vector<float> logits;
  StepStatistics statistics;
};

Computed compute(TestModel& test, const PackedBatch& batch) {
  test.forget_gradients();
  Computed computed;
  test.model->forward_backward(test.context, batch, computed.statistics);
  const StepStatistics& sums = computed.statistics;
  computed.loss = (sums.nll + sums.z) / sums.targets + auxiliary_loss(sums, test.deck.moe);
  computed.logits = logits_of(test, batch.decoder.tokens());
  return computed;
}

void expect_gradients(TestModel& test, const ForeignModel& expected, const std::string& what) {
  int nonzero = 0;
  for (std::size_t p = 0; p < expected.specs().size(); ++p) {
    const ParameterSpec& spec = expected.specs()[p];
    std::vector<float> values(std::size_t(spec.matrix_size()));
    for (std::int64_t e = 0; e < spec.experts; ++e) {
      expected.read(int(p), e, make_tensor(values.data(), spec.rows, spec.cols));
      EXPECT_LE(relative_difference(test.store.gradient(int(p), e).flat<float>(), values), kGradients)
          << what << ": " << spec.name << " expert " << e;
      nonzero += std::any_of(values.begin(), values.end(), [](float x) { return x != 0.0F; }) ? 1 : 0;
    }
  }
  EXPECT_GT(nonzero, 40);
}

BatchLimits limits_of(const PackedBatch& batch) {
  const auto longest = [](const RaggedSide& s) {
    return *std::max_element(s.segment_count_S.begin(), s.segment_count_S.end());
  };
  return {batch.rows, batch.encoder.tokens(), batch.decoder.tokens(), longest(batch.encoder), longest(batch.decoder)};
}

void expect_parity(const Case& c, const Deck& deck, const std::string& device, const std::string& results,
                   std::size_t per_row) {
  const std::string what = fmt::format("{} on {}, {} examples in a row", c.folder, device, per_row);
  const Communicator world = Communicator::world();
  const PackedBatch batch = batch_of(c, per_row);
  TestModel test(deck, world, 1, device, DType::f32, limits_of(batch));
  load(test, c.weights);
  const Computed computed = compute(test, batch);
  const double loss = c.json.at(results + "loss").get<double>();
  EXPECT_NEAR(computed.loss, loss, kLoss * loss) << what;
  const std::vector<float> logits = stored_logits(c.folder + "/" + results + "logits.safetensors");
  ASSERT_EQ(computed.logits.size(), logits.size());
  EXPECT_LE(relative_difference(computed.logits, logits), kLogits) << what;
  expect_gradients(test, open_hf_tensors(c.folder + "/config.json", c.folder + "/" + results + "gradients.safetensors"),
                   what);
}

TEST_F(Parity, T5OfVersion10ReluAndTied) {
  const Case c("t5_1_0");
  EXPECT_TRUE(c.deck().model.tied_logits);
  for (const char* device : {"reference", "cpu"}) expect_parity(c, c.deck(), device, "", 1);
}

TEST_F(Parity, T5OfVersion11GatedAndUntiedFromThreeFiles) {
  const Case c("t5_1_1");
  EXPECT_FALSE(c.deck().model.tied_logits);
  for (const char* device : {"reference", "cpu"}) expect_parity(c, c.deck(), device, "", 1);
}

TEST_F(Parity, PackedExamplesGiveWhatPaddedOnesGive) {
  for (const char* name : {"t5_1_0", "t5_1_1"}) {
    const Case c(name);
    for (const std::size_t per_row : {2, 4}) expect_parity(c, c.deck(), "cpu", "", per_row);
  }
}

TEST_F(Parity, SwitchWithAuxiliaryLossesWhereNothingIsDropped) {
  const Case c("switch");
  for (const char* device : {"reference", "cpu"}) expect_parity(c, c.deck(), device, "", 1);
}

/// Three slots an expert and row, whatever the length.
Deck with_drops(const Case& c) {
  Deck deck = c.deck();
  deck.moe.capacity_factor = 1e-3;
  deck.moe.min_capacity = c.json.at("drops_capacity").get<std::int64_t>();
  return deck;
}

TEST_F(Parity, SwitchWithDropsFollowsThePaper) {
  const Case c("switch");
  for (const char* device : {"reference", "cpu"}) expect_parity(c, with_drops(c), device, "drops_paper_", 1);
}

// transformers adds p * x of a dropped token to the residual stream and counts the token as one of expert 0 in the
// balance loss; after the paper it adds nothing and counts for the expert it asked for. If this test fails, one side
// has changed.
TEST_F(Parity, TransformersDiffersFromThePaperWhereTokensAreDropped) {
  const Case c("switch");
  const PackedBatch batch = batch_of(c, 1);
  TestModel test(with_drops(c), Communicator::world(), 1, "cpu", DType::f32, limits_of(batch));
  load(test, c.weights);
  const Computed computed = compute(test, batch);
  for (const MoeLayerStatistics& layer : computed.statistics.moe) EXPECT_GT(layer.dropped, 0.0) << layer.layer;
  EXPECT_GT(relative_difference(computed.logits, stored_logits(c.folder + "/drops_transformers_logits.safetensors")),
            1000 * kLogits);
  const double theirs = c.json.at("drops_transformers_loss").get<double>();
  EXPECT_GT(std::abs(computed.loss - theirs), 100 * kLoss * theirs);
}

TEST_F(Parity, GreedyAnswersAreTheSameTokens) {
  for (const char* name : {"t5_1_0", "t5_1_1", "switch"}) {
    const Case c(name);
    const Rows inputs = c.rows("inputs");
    const BatchLimits limits{std::int64_t(inputs.size()), 200, 50, 40, 12};
    for (const char* device : {"reference", "cpu"}) {
      TestModel test(c.deck(), Communicator::world(), 1, device, DType::f32, limits, false);
      load(test, c.weights);
      Rows without_eos = inputs;  // the decoder adds it
      for (TokenIds& ids : without_eos) ids.pop_back();
      EXPECT_EQ(generate_greedy(*test.model, test.context, without_eos, 12), c.rows("generated")) << name;
    }
  }
}

TEST_F(Parity, BucketsOfRelativePositions) {
  for (const char* name : {"t5_1_0", "t5_1_1"}) {
    const Case c(name);
    const ModelDeck model = c.deck().model;
    for (const bool both_ways : {true, false}) {
      const auto expected = c.json.at(both_ways ? "buckets_both_ways" : "buckets_causal").get<std::vector<int>>();
      ASSERT_EQ(expected.size(), 321U);
      for (int n = -160; n <= 160; ++n) {
        EXPECT_EQ(relative_bucket(n, both_ways, int(model.bias_buckets), int(model.bias_max_distance)),
                  expected[std::size_t(n + 160)])
            << name << " at distance " << n << (both_ways ? ", both ways" : ", causal");
      }
    }
  }
}

}  // namespace
}  // namespace flanmoe
