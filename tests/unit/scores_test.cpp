// Scores of tasks equal counts made by hand.
#include "evaluate/scores.hpp"

#include <gtest/gtest.h>

#include <algorithm>

#include "base/error.hpp"

namespace flanmoe {
namespace {

ExampleOutcome outcome(const char* task, const char* variant, bool held_out, bool exact, std::int64_t choices = 0,
                       bool acc = false, bool acc_norm = false) {
  ExampleOutcome o;
  o.task = task;
  o.category = "words";
  o.variant = variant;
  o.held_out = held_out;
  o.generated = true;
  o.exact_match = exact;
  o.generated_tokens = 3;
  o.choices = choices;
  o.acc = acc;
  o.acc_norm = acc_norm;
  o.target_nll = 2.5;
  o.target_tokens = 2;
  return o;
}

std::vector<ExampleOutcome> sample() {
  return {
      outcome("synonym", "few_shot", false, true, 4, true, false),
      outcome("synonym", "zero_shot", false, true, 4, true, true),
      outcome("synonym", "zero_shot", false, false, 2, false, true),
      outcome("synonym", "zero_shot", false, false, 4, false, false),
      outcome("synonym", "zero_shot", false, false, 4, false, false),
      outcome("define", "zero_shot", false, true),
      outcome("define", "zero_shot", false, false),
      outcome("antonym", "zero_shot", true, false, 2, true, true),
  };
}

TEST(Scores, ScoresEqualHandCounts) {
  const auto scores = score_tasks(sample());
  ASSERT_EQ(scores.size(), 4U);
  EXPECT_EQ(scores[0].task, "define");
  EXPECT_DOUBLE_EQ(scores[0].exact_match->value, 0.5);
  EXPECT_NEAR(scores[0].exact_match->standard_error, 0.35355339059327373, 1e-15);  // sqrt(0.25 / 2)
  EXPECT_FALSE(scores[0].acc.has_value());
  EXPECT_FALSE(scores[0].chance.has_value());

  const TaskScore& synonym = scores[1];
  EXPECT_EQ(synonym.task, "synonym");
  EXPECT_EQ(synonym.variant, "zero_shot");
  EXPECT_EQ(synonym.n, 4);
  EXPECT_DOUBLE_EQ(synonym.exact_match->value, 0.25);
  EXPECT_DOUBLE_EQ(synonym.acc->value, 0.25);
  EXPECT_DOUBLE_EQ(synonym.acc_norm->value, 0.5);
  EXPECT_DOUBLE_EQ(*synonym.chance, (0.25 + 0.5 + 0.25 + 0.25) / 4);
  EXPECT_NEAR(*synonym.normalized_score, 100 * (0.25 - 0.3125) / 0.6875, 1e-12);
  EXPECT_NEAR(synonym.acc->standard_error, 0.21650635094610965, 1e-15);  // sqrt(3/16 / 4)
  EXPECT_DOUBLE_EQ(synonym.target_nll, 10.0);
  EXPECT_EQ(synonym.target_tokens, 8);
  EXPECT_EQ(synonym.generated_tokens, 12);

  EXPECT_EQ(scores[2].variant, "few_shot");
  EXPECT_EQ(scores[3].task, "antonym");
  EXPECT_TRUE(scores[3].held_out);
}

TEST(Scores, AveragesAreUnweightedOverTasksAndSplitByHeldOut) {
  const auto means = average_scores(score_tasks(sample()));
  ASSERT_EQ(means.size(), 3U);
  EXPECT_FALSE(means[0].held_out);
  EXPECT_EQ(means[0].variant, "zero_shot");
  EXPECT_EQ(means[0].tasks, 2);
  EXPECT_EQ(means[0].n, 6);
  EXPECT_DOUBLE_EQ(means[0].exact_match->value, (0.5 + 0.25) / 2);
  // Two independent task scores: sqrt(0.125 + 3/64) / 2.
  EXPECT_NEAR(means[0].exact_match->standard_error, 0.20728904939721249, 1e-15);
  // Only one of the two tasks has choices.
  EXPECT_DOUBLE_EQ(means[0].acc->value, 0.25);
  EXPECT_EQ(means[0].acc->n, 4);
  EXPECT_DOUBLE_EQ(*means[0].chance, 0.3125);
  EXPECT_EQ(means[1].variant, "few_shot");
  EXPECT_TRUE(means[2].held_out);
  EXPECT_DOUBLE_EQ(means[2].acc->value, 1.0);
  EXPECT_DOUBLE_EQ(means[2].acc->standard_error, 0.0);
}

TEST(Scores, OrderOfOutcomesDoesNotMatter) {
  auto reversed = sample();
  std::reverse(reversed.begin(), reversed.end());
  const auto a = score_tasks(sample()), b = score_tasks(reversed);
  ASSERT_EQ(a.size(), b.size());
  for (std::size_t i = 0; i < a.size(); ++i) {
    EXPECT_EQ(a[i].task, b[i].task);
    EXPECT_EQ(a[i].variant, b[i].variant);
    EXPECT_EQ(a[i].exact_match->value, b[i].exact_match->value);
  }
}

TEST(Scores, NothingGeneratedIsAbsentNotZero) {
  ExampleOutcome o = outcome("synonym", "zero_shot", false, false, 2, true, true);
  o.generated = false;
  const auto scores = score_tasks({o});
  EXPECT_FALSE(scores[0].exact_match.has_value());
  EXPECT_FALSE(average_scores(scores)[0].exact_match.has_value());
  EXPECT_TRUE(scores[0].acc.has_value());
}

TEST(Scores, TiesGoToTheFirstChoiceAndBytesDivide) {
  EXPECT_EQ(best_choice({-2.0, -1.0, -1.0}), 1);
  EXPECT_THROW(best_choice({}), LogicError);
  // -6/2 = -3 beats -4/1; without division -4 beats -6.
  const std::vector<double> log_likelihoods = {-4.0, -6.0};
  EXPECT_EQ(best_choice(log_likelihoods), 0);
  EXPECT_EQ(best_choice(per_byte(log_likelihoods, {1, 2})), 1);
  EXPECT_DOUBLE_EQ(per_byte({-3.0}, {0})[0], -3.0);
}

TEST(Scores, ImpossibleCountsAreRefused) {
  EXPECT_THROW(make_share(1, 0), LogicError);
  EXPECT_THROW(make_share(3, 2), LogicError);
  EXPECT_DOUBLE_EQ(make_share(0, 5).standard_error, 0.0);
}

}  // namespace
}  // namespace flanmoe
