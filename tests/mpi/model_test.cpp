// The whole model: gradients against central differences in double, devices against each other, what tokens see.
#include "model/model.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <fstream>

#include "model_fixture.hpp"

namespace flanmoe {
namespace {

using testing::alone;
using testing::kSparsePresets;
using testing::limits_of;
using testing::preset_deck;
using testing::random_batch;
using testing::TestModel;
using testing::tiny_deck;

/// Tests that say nothing new on more ranks run on one only.
class OneRank : public ::testing::Test {
 protected:
  void SetUp() override {
    if (Communicator::world().size() > 1) GTEST_SKIP() << "the same on one rank";
  }
};
class ModelGradient : public OneRank {};
class ModelDevices : public OneRank {};

/// Compares a few elements of every gradient matrix with central differences of the loss, all in double.
void expect_true_gradients(const Deck& deck, const std::string& what) {
  const Communicator self = alone();
  TestModel test(deck, self, 1, "reference", DType::f64, limits_of(deck, 3));
  const PackedBatch batch = random_batch(deck, 3, 11);
  // Factors that start as 1 would hide where they are forgotten; some become negative.
  for (std::size_t p = 0; p < test.store.specs().size(); ++p) {
    if (test.store.specs()[p].init != InitKind::ones) continue;
    double place = 0;
    for (double& factor : test.store.weight(int(p)).flat<double>()) factor += 1.2 * std::sin(place += 1.0);
  }
  test.forget_gradients();
  test.loss(batch);
  std::vector<std::vector<double>> analytic;
  for (std::size_t p = 0; p < test.store.specs().size(); ++p) {
    for (std::int64_t e = 0; e < test.store.local_experts(int(p)); ++e) {
      const auto g = test.store.gradient(int(p), e).flat<double>();
      analytic.emplace_back(g.begin(), g.end());
    }
  }
  std::size_t matrix = 0;
  int nonzero = 0;
  for (std::size_t p = 0; p < test.store.specs().size(); ++p) {
    const bool learnt = test.store.specs()[p].balance_rate == 0.0;
    for (std::int64_t e = 0; e < test.store.local_experts(int(p)); ++e, ++matrix) {
      if (!learnt) continue;  // what stands in its gradient is not a gradient
      const auto w = test.store.weight(int(p)).matrix(e).flat<double>();
      const std::vector<double>& g = analytic[matrix];
      // The largest gradient element and two fixed ones.
      const auto largest = std::size_t(
          std::max_element(g.begin(), g.end(), [](double a, double b) { return std::abs(a) < std::abs(b); }) -
          g.begin());
      for (const std::size_t i : {largest, std::size_t{0}, g.size() / 2}) {
        const double kept = w[i];
        const double h = 1e-5;
        w[i] = kept + h;
        const double up = test.loss(batch);
        w[i] = kept - h;
        const double down = test.loss(batch);
        w[i] = kept;
        const double numeric = (up - down) / (2 * h);
        // Truncation O(h^2) and cancellation 1e-16/h: about 1e-9 of the loss's scale.
        EXPECT_NEAR(g[i], numeric, 2e-8 + 2e-6 * std::abs(numeric))
            << what << ": " << test.store.specs()[p].name << " expert " << e << " element " << i;
        nonzero += g[i] != 0.0 ? 1 : 0;
      }
    }
  }
  EXPECT_GT(nonzero, int(matrix));
}

TEST_F(ModelGradient, DenseGatedUntied) { expect_true_gradients(tiny_deck(false), "dense t5 1.1"); }

TEST_F(ModelGradient, DenseReluTied) {
  Deck deck = tiny_deck(false);
  deck.model.activation = "relu";
  deck.model.tied_logits = true;
  expect_true_gradients(deck, "dense t5 1.0");
}

TEST_F(ModelGradient, DenseWithEveryDropout) {
  for (const bool shared : {true, false}) {
    Deck deck = tiny_deck(false);
    deck.model.dropout = 0.25;
    deck.model.dropout_shared_over_length = shared;
    expect_true_gradients(deck, "dropout");
  }
}

TEST_F(ModelGradient, Top1WithDropsAndAuxiliaryLosses) {
  Deck deck = tiny_deck(true);
  deck.moe.capacity_factor = 0.75;
  deck.moe.balance_coefficient = 0.3;
  deck.moe.z_coefficient = 0.2;
  deck.moe.expert_dropout = 0.3;
  expect_true_gradients(deck, "switch");
}

TEST_F(ModelGradient, Top2RenormalizedInGroupsOfThreeRows) {
  Deck deck = tiny_deck(true);
  deck.moe.top_k = 2;
  deck.moe.renormalize = true;
  deck.moe.group_rows = 3;
  deck.moe.priority = "probability";
  deck.moe.balance_coefficient = 0.3;
  expect_true_gradients(deck, "gshard");
}

TEST_F(ModelGradient, DroplessReluExperts) {
  Deck deck = tiny_deck(true);
  deck.moe.top_k = 2;
  deck.moe.capacity_factor = 0.0;
  deck.model.activation = "relu";
  expect_true_gradients(deck, "dropless");
}

// A model is evaluated with about as many experts for a token as it was trained with: within a third, as gshard draws
// second experts in training (1.54 experts a token here) and takes all of them in evaluation.
TEST_F(ModelGradient, PresetsUseAsManyExpertsInEvaluationAsInTraining) {
  const Communicator self = alone();
  for (const std::string& name : kSparsePresets) {
    Deck deck = preset_deck(name);
    deck.moe.min_capacity = 4;
    const PackedBatch batch = random_batch(deck, 6, 3);
    TestModel test(deck, self, 1, "reference", DType::f32, limits_of(deck, 6));
    StepStatistics trained, evaluated;
    test.model->forward_backward(test.context, batch, trained);
    test.model->evaluate(test.context, batch, {}, evaluated);
    const auto copies = [](const StepStatistics& statistics) {
      double claims = 0, tokens = 0;
      for (const MoeLayerStatistics& layer : statistics.moe) {
        for (const double load : layer.load_E) claims += load;
        tokens += layer.tokens;
      }
      return claims / tokens;
    };
    EXPECT_NEAR(copies(evaluated), copies(trained), copies(trained) / 3) << name;
    if (deck.moe.top_k == 2) {
      EXPECT_GT(copies(evaluated), 1.2) << name;
    }
  }
}

TEST_F(ModelGradient, BucketsAreAnnouncedInOrderWhenTheyAreComplete) {
  const Communicator self = alone();
  Deck tied = tiny_deck(true), frozen = tiny_deck(true), untied = testing::tiny_palm(true);
  tied.model.tied_logits = true;
  frozen.optimizer.freeze = "encoder/* embedding";
  untied.model.tied_logits = false;
  // Layers, and logits of their own, and what is looked up.
  for (const auto& [deck, buckets] : {std::pair{tiny_deck(true), 6}, {tied, 5}, {frozen, 6}, {untied, 4}}) {
    TestModel test(deck, self, 1, "reference", DType::f32, limits_of(deck, 4));
    ASSERT_EQ(test.store.buckets(), buckets);
    test.forget_gradients();
    std::vector<std::vector<float>> announced;
    const auto values = [&](std::int64_t bucket) {
      std::vector<float> all;
      for (const Placement placement : {Placement::dense, Placement::expert}) {
        const auto part = test.store.gradient_bucket(placement, bucket).flat<float>();
        all.insert(all.end(), part.begin(), part.end());
      }
      return all;
    };
    const auto listener = [&](std::int64_t bucket) {
      EXPECT_EQ(bucket, std::int64_t(announced.size()));
      announced.push_back(values(bucket));
    };
    StepStatistics statistics;
    test.model->forward_backward(test.context, random_batch(deck, 4, 3), statistics, listener);
    ASSERT_EQ(std::int64_t(announced.size()), test.store.buckets());
    for (std::int64_t b = 0; b < test.store.buckets(); ++b) {
      EXPECT_EQ(announced[std::size_t(b)], values(b)) << "bucket " << b;  // never equal where something is not a number
    }
  }
}

TEST_F(ModelGradient, OfEveryPreset) {
  for (const std::string& name : kSparsePresets) expect_true_gradients(preset_deck(name), name);
}

TEST_F(ModelGradient, ExpertChoiceInBothStacksWithZLossAndJitter) {
  Deck deck = tiny_deck(true);
  deck.moe.router = deck.moe.decoder_router = "expert_choice";
  deck.moe.z_coefficient = 0.2;
  deck.moe.jitter = 0.3;
  deck.moe.group_rows = 3;
  deck.moe.expert_dropout = 0.2;
  expect_true_gradients(deck, "expert choice");
}

TEST_F(ModelGradient, SharedExpertsExtraFeedForwardsAndFactorsOfHiddenValues) {
  for (const char* activation : {"relu", "gated_gelu"}) {
    Deck deck = tiny_deck(true);
    deck.model.activation = activation;
    deck.model.multiplicative_bias = true;
    deck.model.dropout = 0.2;
    deck.moe.top_k = 2;
    deck.moe.shared_experts = 2;
    deck.moe.extra_feed_forward = true;
    deck.moe.bias_rate = 0.1;
    deck.moe.expert_dropout = 0.3;
    deck.moe.balance_scale = "gshard";
    expect_true_gradients(deck, activation);
  }
}

TEST_F(ModelGradient, OfChoicesInTurn) {
  Deck deck = tiny_deck(true);
  deck.moe.top_k = 3;
  deck.moe.forced_balance = true;
  deck.moe.renormalize = true;
  deck.moe.second_policy = "threshold";
  deck.moe.second_threshold = 0.3;
  expect_true_gradients(deck, "in turn");
}

TEST_F(ModelGradient, PalmDense) {
  for (const char* attention : {"causal", "prefix"})
    expect_true_gradients(testing::tiny_palm(false, attention), attention);
}

TEST_F(ModelGradient, PalmSparseWithEveryDropout) {
  for (const char* attention : {"causal", "prefix"}) {
    Deck deck = testing::tiny_palm(true, attention);
    deck.model.dropout = 0.2;
    deck.moe.top_k = 2;
    deck.moe.capacity_factor = 0.75;
    deck.moe.expert_dropout = 0.2;
    deck.moe.balance_coefficient = 0.3;
    deck.moe.z_coefficient = 0.2;
    expect_true_gradients(deck, attention);
  }
}

TEST_F(ModelGradient, DecoderOnlyRelativesOfPalm) {
  Deck deck = testing::tiny_palm(true, "prefix");
  deck.model.heads = 4;
  deck.model.kv_heads = 2;
  deck.model.activation = "gated_gelu";
  deck.model.norm = "rms";
  deck.model.tied_logits = false;
  expect_true_gradients(deck, "grouped queries, gated gelu, RMSNorm, untied");
}

TEST_F(ModelGradient, T5WithGroupedQueriesSwishAndLayerNorm) {
  Deck deck = tiny_deck(false);
  deck.model.heads = 4;
  deck.model.kv_heads = 2;
  deck.model.activation = "gated_swish";
  deck.model.norm = "layer";
  expect_true_gradients(deck, "t5 with keys of palm");
}

TEST_F(ModelGradient, PalmWithAllThatSparseLayersCanHave) {
  Deck deck = testing::tiny_palm(true, "prefix");
  deck.model.multiplicative_bias = true;
  deck.model.dropout = 0.2;
  deck.moe.top_k = 2;
  deck.moe.shared_experts = 2;
  deck.moe.extra_feed_forward = true;
  deck.moe.bias_rate = 0.1;
  deck.moe.z_coefficient = 0.2;
  expect_true_gradients(deck, "palm, sparse with everything");
}

/// Sums over leaves are those over all tokens, in another order.
void expect_leaves_change_nothing(const Deck& deck) {
  const Communicator self = alone();
  const std::int64_t rows = 8 * deck.moe.group_rows;
  const PackedBatch batch = random_batch(deck, rows, 22);
  BatchLimits limits = limits_of(deck, rows);
  TestModel plain(deck, self, 1, "reference", DType::f64, limits);
  limits.leaves = 4;
  TestModel leaves(deck, self, 1, "reference", DType::f64, limits);
  StepStatistics sums[2];
  for (TestModel* test : {&plain, &leaves}) {
    test->forget_gradients();
    test->model->forward_backward(test->context, batch, sums[test == &leaves ? 1 : 0]);
  }
  EXPECT_NEAR(sums[0].nll, sums[1].nll, 1e-9 * sums[0].nll);
  for (std::size_t p = 0; p < plain.store.specs().size(); ++p) {
    for (std::int64_t e = 0; e < plain.store.local_experts(int(p)); ++e) {
      const auto a = plain.store.gradient(int(p), e).flat<double>(),
                 b = leaves.store.gradient(int(p), e).flat<double>();
      const Tensor lookups = leaves.store.lookup_gradient(int(p));
      for (std::size_t i = 0; i < a.size(); ++i) {
        const double sum = b[i] + (lookups.absent() ? 0.0 : lookups.flat<double>()[i]);
        ASSERT_NEAR(a[i], sum, 1e-12 + 1e-10 * std::abs(a[i])) << plain.store.specs()[p].name << " element " << i;
      }
    }
  }
}

TEST_F(ModelGradient, LeavesChangeNothing) {
  Deck deck = tiny_deck(true);
  for (const bool tied : {false, true}) {
    deck.model.tied_logits = tied;
    expect_leaves_change_nothing(deck);
  }
  expect_leaves_change_nothing(testing::tiny_palm(true, "prefix"));
}

TEST_F(ModelDevices, CpuEqualsReferenceInFp32) {
  const Communicator self = alone();
  Deck everything = tiny_deck(true);
  everything.model.multiplicative_bias = true;
  everything.moe.shared_experts = 1;
  everything.moe.extra_feed_forward = true;
  everything.moe.jitter = 0.1;
  Deck experts_choose = everything;
  experts_choose.moe.router = "expert_choice";
  for (Deck deck : {tiny_deck(false), tiny_deck(true), everything, experts_choose, testing::tiny_palm(false),
                    testing::tiny_palm(true, "prefix")}) {
    deck.moe.top_k = 2;
    const PackedBatch batch = random_batch(deck, 6, 31);
    TestModel a(deck, self, 1, "reference", DType::f64, limits_of(deck, 6));
    TestModel b(deck, self, 1, "cpu", DType::f32, limits_of(deck, 6));
    a.forget_gradients();
    b.forget_gradients();
    const double want = a.loss(batch);
    EXPECT_NEAR(b.loss(batch), want, 1e-5 * want);
    for (std::size_t p = 0; p < a.store.specs().size(); ++p) {
      for (std::int64_t e = 0; e < a.store.local_experts(int(p)); ++e) {
        const auto x = a.store.gradient(int(p), e).flat<double>();
        const auto y = b.store.gradient(int(p), e).flat<float>();
        double scale = 0;
        for (const double v : x) scale = std::max(scale, std::abs(v));
        for (std::size_t i = 0; i < x.size(); ++i) {
          ASSERT_NEAR(y[i], x[i], 1e-4 * scale + 1e-7) << a.store.specs()[p].name << " element " << i;
        }
      }
    }
  }
}

TEST_F(ModelDevices, Bf16FollowsFp64WithinItsRounding) {
  const Communicator self = alone();
  for (const Deck& deck : {tiny_deck(true), testing::tiny_palm(true)}) {
    const PackedBatch batch = random_batch(deck, 6, 31);
    TestModel a(deck, self, 1, "reference", DType::f64, limits_of(deck, 6));
    TestModel b(deck, self, 1, "cpu", DType::bf16, limits_of(deck, 6));
    const double want = a.loss(batch);
    // Eight bits of mantissa through four layers of an untrained model: a few percent of the loss at most.
    EXPECT_NEAR(b.loss(batch), want, 0.03 * want);
  }
}

struct Perturbed {
  std::vector<float> before, after;  // negative log-likelihoods
};
/// Evaluates the batch as it is and with the token of `side` replaced by another one.
Perturbed perturb(TestModel& test, PackedBatch batch, RaggedSide PackedBatch::*side, std::int64_t token) {
  Perturbed result;
  StepStatistics statistics;
  result.before = test.model->evaluate(test.context, batch, {}, statistics);
  std::int32_t& id = (batch.*side).token_T[std::size_t(token)];
  id = id == 4 ? 5 : 4;
  result.after = test.model->evaluate(test.context, batch, {}, statistics);
  return result;
}

TEST_F(ModelDevices, ASegmentIsBlindToItsNeighboursAndATokenToWhatFollows) {
  const Communicator self = alone();
  for (Deck deck : {testing::tiny_palm(false), testing::tiny_palm(false, "prefix"), testing::tiny_palm(true, "prefix"),
                    tiny_deck(true)}) {
    deck.moe.capacity_factor_eval = 0;  // capacity is shared by the segments of a row
    deck.batch.input_length = deck.batch.target_length = 24;
    const PackedBatch batch = random_batch(deck, 4, 31);
    TestModel test(deck, self, 1, "cpu", DType::f32, limits_of(deck, 4), false);
    for (std::size_t s = 0; s < batch.segment_row_S.size(); ++s) {
      const std::int32_t begin = batch.decoder.segment_begin_S[s], end = begin + batch.decoder.segment_count_S[s];
      const Perturbed input = perturb(test, batch, &PackedBatch::encoder, batch.encoder.segment_begin_S[s]);
      const Perturbed target = perturb(test, batch, &PackedBatch::decoder, end - 1);
      for (std::int32_t t = 0; t < std::int32_t(input.before.size()); ++t) {
        const bool inside = t >= begin && t < end;
        EXPECT_EQ(input.before[std::size_t(t)] != input.after[std::size_t(t)], inside) << "input, token " << t;
        EXPECT_EQ(target.before[std::size_t(t)] != target.after[std::size_t(t)], t == end - 1) << "target, token " << t;
      }
    }
  }
}

TEST_F(ModelDevices, OnlyAPrefixIsSeenInBothDirections) {
  const Communicator self = alone();
  double loss[2];
  for (const bool prefix : {false, true}) {
    const Deck deck = testing::tiny_palm(false, prefix ? "prefix" : "causal");
    TestModel test(deck, self, 1, "reference", DType::f64, limits_of(deck, 6));
    loss[prefix] = test.loss(random_batch(deck, 6, 31));
  }
  EXPECT_GT(std::abs(loss[0] - loss[1]), 1e-4);
}

}  // namespace
}  // namespace flanmoe
