#include <gtest/gtest.h>

#include <cmath>

#include "optimizer/optimizer.hpp"

namespace flanmoe {
namespace {

OptimizerDeck deck_with(const std::string& schedule, double base, std::int64_t warmup, double final_fraction = 0.0) {
  OptimizerDeck deck;
  deck.schedule = schedule;
  deck.learning_rate = base;
  deck.warmup_steps = warmup;
  deck.final_fraction = final_fraction;
  return deck;
}

TEST(Schedule, ConstantIgnoresTheWarmup) {
  const OptimizerDeck deck = deck_with("constant", 1e-3, 1000);

  EXPECT_EQ(learning_rate(deck, 0, 50), 1e-3);
  EXPECT_EQ(learning_rate(deck, 49, 50), 1e-3);
}

TEST(Schedule, RsqrtIsFlatThenFalls) {
  const OptimizerDeck deck = deck_with("rsqrt", 1.0, 10000);

  EXPECT_DOUBLE_EQ(learning_rate(deck, 0, 1000000), 0.01);
  EXPECT_DOUBLE_EQ(learning_rate(deck, 10000, 1000000), 0.01);
  EXPECT_DOUBLE_EQ(learning_rate(deck, 40000, 1000000), 0.005);
  EXPECT_DOUBLE_EQ(learning_rate(deck_with("rsqrt", 3.0, 0), 0, 10), 3.0);  // no division by zero
}

TEST(Schedule, LinearRampsUpAndComesDownToItsFraction) {
  const OptimizerDeck deck = deck_with("linear", 8.0, 4, 0.25);

  EXPECT_DOUBLE_EQ(learning_rate(deck, 0, 12), 0.0);
  EXPECT_DOUBLE_EQ(learning_rate(deck, 1, 12), 2.0);
  EXPECT_DOUBLE_EQ(learning_rate(deck, 4, 12), 8.0);
  EXPECT_DOUBLE_EQ(learning_rate(deck, 8, 12), 5.0);
  EXPECT_DOUBLE_EQ(learning_rate(deck, 12, 12), 2.0);
  EXPECT_DOUBLE_EQ(learning_rate(deck, 99, 12), 2.0);
}

TEST(Schedule, CosineRampsUpAndComesDownToItsFraction) {
  const OptimizerDeck deck = deck_with("cosine", 8.0, 4, 0.25);

  EXPECT_DOUBLE_EQ(learning_rate(deck, 2, 12), 4.0);
  EXPECT_DOUBLE_EQ(learning_rate(deck, 4, 12), 8.0);
  EXPECT_NEAR(learning_rate(deck, 6, 12), 2.0 + 6.0 * 0.5 * (1.0 + std::sqrt(0.5)), 1e-12);
  EXPECT_NEAR(learning_rate(deck, 8, 12), 5.0, 1e-12);
  EXPECT_DOUBLE_EQ(learning_rate(deck, 12, 12), 2.0);
}

TEST(Schedule, AWarmupAsLongAsTheRunIsAllRamp) {
  for (const char* name : {"linear", "cosine"}) {
    const OptimizerDeck deck = deck_with(name, 6.0, 6);

    EXPECT_DOUBLE_EQ(learning_rate(deck, 5, 6), 5.0);
    EXPECT_DOUBLE_EQ(learning_rate(deck, 6, 6), 0.0);
  }
}

TEST(Schedule, UnknownNamesAreRefused) { EXPECT_THROW(learning_rate(deck_with("stairs", 1.0, 1), 0, 10), LogicError); }

}  // namespace
}  // namespace flanmoe
