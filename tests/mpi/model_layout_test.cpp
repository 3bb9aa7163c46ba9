// The whole model: a step is the same on one rank and on all, with every expert degree and in microbatches.
#include <gtest/gtest.h>

#include <cmath>

#include "model/model.hpp"
#include "model_fixture.hpp"

namespace flanmoe {
namespace {

using testing::alone;
using testing::kSparsePresets;
using testing::limits_of;
using testing::preset_deck;
using testing::random_batch;
using testing::take_rows;
using testing::TestModel;
using testing::tiny_deck;

/// Gradients and sums of a step on one rank alone and on all ranks together, with every expert degree that divides.
void expect_layout_independence(Deck deck) {
  const Communicator world = Communicator::world();
  const Communicator self = alone();
  const std::int64_t rows = 12 * deck.moe.group_rows;
  const PackedBatch batch = random_batch(deck, rows, 21);
  TestModel one(deck, self, 1, "reference", DType::f64, limits_of(deck, rows));
  one.forget_gradients();
  StepStatistics expected;
  one.model->forward_backward(one.context, batch, expected);
  for (int degree = 1; degree <= world.size(); ++degree) {
    if (world.size() % degree != 0 || deck.moe.experts % degree != 0) continue;
    const std::int64_t mine = rows / world.size();
    TestModel test(deck, world, degree, "reference", DType::f64, limits_of(deck, mine));
    test.forget_gradients();
    StepStatistics statistics;
    // Two microbatches where the rows allow it.
    const std::int64_t first_part = mine > deck.moe.group_rows ? deck.moe.group_rows : mine;
    for (const auto& [first, count] : {std::pair{std::int64_t{0}, first_part}, {first_part, mine - first_part}}) {
      if (count == 0) continue;
      test.model->forward_backward(test.context, take_rows(batch, world.rank() * mine + first, count), statistics);
    }
    std::vector<double> sums = statistics.pack();
    world.all_reduce<double>(sums, ReduceOp::sum);
    const std::vector<double> want = expected.pack();
    ASSERT_EQ(sums.size(), want.size());
    for (std::size_t i = 0; i < sums.size(); ++i) EXPECT_NEAR(sums[i], want[i], 1e-9 * (1 + std::abs(want[i]))) << i;
    for (const Placement placement : {Placement::dense, Placement::expert}) {
      const auto& replicas = placement == Placement::dense ? test.communicators.world : test.communicators.data;
      replicas.all_reduce<double>(test.store.gradient_flat(placement).flat<double>(), ReduceOp::sum);
    }
    for (std::size_t p = 0; p < test.store.specs().size(); ++p) {
      for (std::int64_t e = 0; e < test.store.local_experts(int(p)); ++e) {
        const auto a = test.store.gradient(int(p), e).flat<double>();
        const auto b = one.store.gradient(int(p), test.store.first_expert(int(p)) + e).flat<double>();
        for (std::size_t i = 0; i < a.size(); ++i) {
          ASSERT_NEAR(a[i], b[i], 1e-12 + 1e-10 * std::abs(b[i]))
              << test.store.specs()[p].name << " expert " << e << " element " << i << " degree " << degree;
        }
      }
    }
  }
}

TEST(ModelLayout, SwitchWithDropsAndDropout) {
  Deck deck = tiny_deck(true);
  deck.moe.capacity_factor = 0.75;
  deck.moe.expert_dropout = 0.2;
  deck.model.dropout = 0.1;
  expect_layout_independence(deck);
}

TEST(ModelLayout, GshardInGroupsOfTwoRows) {
  Deck deck = tiny_deck(true);
  deck.moe.top_k = 2;
  deck.moe.renormalize = true;
  deck.moe.group_rows = 2;
  deck.moe.z_coefficient = 0.1;
  expect_layout_independence(deck);
}

TEST(ModelLayout, EveryPreset) {
  for (const std::string& name : kSparsePresets) {
    SCOPED_TRACE(name);
    expect_layout_independence(preset_deck(name));
  }
}

TEST(ModelLayout, EverythingThatCanBeAdded) {
  Deck deck = tiny_deck(true);
  deck.model.multiplicative_bias = true;
  deck.moe.top_k = 2;
  deck.moe.shared_experts = 1;
  deck.moe.extra_feed_forward = true;
  deck.moe.bias_rate = 0.1;  // its gradient holds the claims of each expert
  deck.moe.expert_dropout = 0.2;
  deck.moe.jitter = 0.1;
  deck.moe.second_policy = "random";
  expect_layout_independence(deck);
}

TEST(ModelLayout, Dropless) {
  Deck deck = tiny_deck(true);
  deck.moe.top_k = 2;
  deck.moe.capacity_factor = 0.0;
  expect_layout_independence(deck);
}

TEST(ModelLayout, PalmWithDropsAndDropout) {
  for (const char* attention : {"causal", "prefix"}) {
    Deck deck = testing::tiny_palm(true, attention);
    deck.moe.top_k = 2;
    deck.moe.capacity_factor = 0.75;
    deck.moe.z_coefficient = 0.1;
    deck.model.dropout = 0.1;
    expect_layout_independence(deck);
  }
}

TEST(ModelLayout, ARankWithoutRowsTakesPart) {
  const Communicator world = Communicator::world();
  if (world.size() == 1 || 4 % world.size() != 0) GTEST_SKIP() << "needs 2 or 4 ranks";
  for (const Deck& deck : {tiny_deck(true), testing::tiny_palm(true)}) {
    const PackedBatch batch = random_batch(deck, 2, 8);
    TestModel test(deck, world, world.size(), "reference", DType::f64, limits_of(deck, 2));
    test.forget_gradients();
    StepStatistics statistics;
    test.model->forward_backward(test.context, take_rows(batch, 0, world.rank() == 0 ? 2 : 0), statistics);
    const double targets = world.all_reduce(statistics.targets, ReduceOp::sum);
    EXPECT_EQ(targets, double(batch.step_target_tokens));
  }
}

}  // namespace
}  // namespace flanmoe
