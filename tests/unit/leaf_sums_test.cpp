#include "train/leaf_sums.hpp"

#include <gtest/gtest.h>

#include <cmath>

#include "deck/deck.hpp"

namespace flanmoe {
namespace {

// In fp32 the order of these sums shows: 2^24 + 1 = 2^24.
constexpr float kLarge = 16777216.0F;

struct Rig {
  explicit Rig(GradientSums sums)
      : store({{"a", 1, 1, 3, Placement::dense}, {"b", 2, 2, 2, Placement::expert}}, {}, DType::f32) {
    for (const bool real : {false, true}) {
      store.lay(weights, &gradients, sums);
      if (real) break;
      for (Arena* arena : {&weights, &gradients}) {
        arena->commit();
        arena->rewind();
      }
    }
  }
  /// Gradients of a leaf: `a` and source s of `b` hold value + 0 and value + s.
  void write(float value) {
    for (float& x : store.gradient(0, 0).flat<float>()) x = value;
    for (std::int64_t e = 0; e < 2; ++e) {
      for (std::int64_t s = 0; s < store.sources(1); ++s) {
        for (float& x : store.gradient(1, e, s).flat<float>()) x = value + float(s);
      }
    }
  }
  Arena weights{"weights"}, gradients{"gradients"};
  ParameterStore store;
  KernelContext context;
};

TEST(LeafSums, NeighboursAreAddedFirst) {
  const std::vector<float> values = {kLarge, 1, 1, 1, -kLarge, 1, 1, 1};
  for (const std::size_t leaves : {1, 2, 4, 8}) {
    const auto levels = std::int64_t(std::log2(leaves)) + 1;
    Rig rig({levels, 1});
    LeafSums sums(rig.context, kernels_for("cpu"), rig.store);
    StepStatistics statistics;
    std::vector<double> nll;
    std::vector<float> tree(values.begin(), values.begin() + std::ptrdiff_t(leaves));
    for (const float value : tree) {
      sums.begin_microbatch(statistics);
      EXPECT_TRUE(rig.store.first_contribution(0)) << "a leaf is written, not added";
      rig.write(value);
      statistics.nll = nll.emplace_back(std::abs(value) == kLarge ? std::copysign(0x1.0p53, value) : 1.0);
      statistics.targets = 1;
      sums.end_microbatch(statistics);
    }
    sums.finish(statistics);
    for (std::size_t n = leaves; n > 1; n /= 2) {
      for (std::size_t i = 0; i < n / 2; ++i) {
        tree[i] = tree[2 * i] + tree[2 * i + 1];
        nll[i] = nll[2 * i] + nll[2 * i + 1];
      }
    }
    EXPECT_EQ(rig.store.gradient(0, 0).flat<float>()[2], tree[0]) << leaves;
    EXPECT_EQ(rig.store.gradient(1, 1).flat<float>()[3], tree[0]) << leaves;
    EXPECT_EQ(statistics.nll, nll[0]) << leaves;
    EXPECT_EQ(statistics.targets, double(leaves));
  }
}

TEST(LeafSums, SourcesOfExpertsMeetAfterTheLeavesOfEach) {
  // Source s of leaf m holds v[m] + s. First over leaves, then ((0+1)+(2+3)) over sources.
  const std::vector<float> values = {kLarge, 1};
  Rig rig({2, 4});
  LeafSums sums(rig.context, kernels_for("cpu"), rig.store);
  StepStatistics statistics;
  for (const float value : values) {
    sums.begin_microbatch(statistics);
    rig.write(value);
    sums.end_microbatch(statistics);
  }
  sums.finish(statistics);
  std::array<float, 4> source{};
  for (std::size_t s = 0; s < 4; ++s) source[s] = (kLarge + float(s)) + (1 + float(s));
  EXPECT_EQ(rig.store.gradient(1, 0).flat<float>()[0], (source[0] + source[1]) + (source[2] + source[3]));
  EXPECT_EQ(rig.store.gradient(0, 0).flat<float>()[0], kLarge + 1.0F);
}

TEST(LeafSums, BuffersFollowFromTheLayout) {
  Deck deck;
  deck.batch.rows = 16;
  deck.reduction.leaves = 0;
  EXPECT_FALSE(leaf_sums(deck, ProcessGrid(4, 0, 2)));
  deck.reduction.leaves = 8;
  deck.batch.rows = 48;
  EXPECT_FALSE(leaf_sums(deck, ProcessGrid(3, 0, 1))) << "3 ranks do not divide 8 leaves";
  deck.model.tied_logits = false;
  const auto whole = leaf_sums(deck, ProcessGrid(4, 0, 2));
  ASSERT_TRUE(whole);
  EXPECT_TRUE(whole->leaves);
  EXPECT_EQ(whole->levels, 1) << "one microbatch a rank";
  EXPECT_EQ(whole->sources, 1) << "leaves of both sources are summed together";
  EXPECT_EQ(whole->table, -1);
  deck.batch.microbatch_rows = 6;
  deck.model.tied_logits = true;
  const auto parts = leaf_sums(deck, ProcessGrid(4, 0, 2));
  ASSERT_TRUE(parts);
  EXPECT_EQ(parts->levels, 2) << "two microbatches a rank";
  EXPECT_EQ(parts->sources, 2);
  EXPECT_EQ(parts->table, 0) << "the embedding";
}

TEST(LeafSums, LookupsOfATableThatMakesLogitsHaveASumOfTheirOwn) {
  Rig rig({2, 1, true, 0});
  LeafSums sums(rig.context, kernels_for("cpu"), rig.store);
  StepStatistics statistics;
  for (const float value : {kLarge, 1.0F}) {
    sums.begin_microbatch(statistics);
    EXPECT_TRUE(rig.store.first_contribution(0));
    EXPECT_THROW(rig.store.first_contribution(0), LogicError) << "two contributions to a sum over leaves";
    rig.write(value);
    for (float& x : rig.store.lookup_gradient(0).flat<float>()) x = -value;
    sums.end_microbatch(statistics);
  }
  sums.finish(statistics);
  EXPECT_EQ(rig.store.gradient(0, 0).flat<float>()[2], kLarge + 1.0F);
  EXPECT_EQ(rig.store.lookup_gradient(0).flat<float>()[2], -kLarge - 1.0F);
  EXPECT_TRUE(rig.store.lookup_gradient(1).absent());
  EXPECT_EQ(rig.store.lookup_segments(), (std::vector<std::int64_t>{3}));
}

TEST(LeafSums, RowsAndLeavesOfAProductAreIndependentOfOthersOnThisMachine) {
  for (const DType type : {DType::f32, DType::bf16}) {
    EXPECT_TRUE(rows_are_independent(kernels_for("cpu"), type));
    EXPECT_TRUE(leaves_are_independent(kernels_for("cpu"), type));
  }
}

}  // namespace
}  // namespace flanmoe
