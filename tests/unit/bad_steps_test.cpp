// What counts as a spike.
#include "train/bad_steps.hpp"

#include <gtest/gtest.h>

#include <cmath>

namespace flanmoe {
namespace {

TEST(BadSteps, ALimitIsAFactorTimesTheMedianOfRecentSteps) {
  const FaultsDeck deck{.on_bad_step = "skip", .loss_spike = 2, .norm_spike = 3};
  BadSteps steps(deck);
  for (int i = 0; i < 7; ++i) steps.add(5, 1);
  EXPECT_TRUE(std::isinf(steps.limits().loss)) << "seven steps are too few";
  steps.add(5, 1);
  EXPECT_EQ(steps.limits().loss, 10);
  EXPECT_EQ(steps.limits().norm, 3);
  for (int i = 0; i < 32; ++i) steps.add(i < 15 ? 100 : 4, 2);  // one spike more or less moves a median little
  EXPECT_EQ(steps.limits().loss, 8);
  EXPECT_EQ(steps.limits().norm, 6);
}

TEST(BadSteps, WithoutFactorsOnlyWhatIsNotFiniteIsBad) {
  const FaultsDeck deck;
  BadSteps steps(deck);
  for (int i = 0; i < 40; ++i) steps.add(1, 1);
  EXPECT_TRUE(std::isinf(steps.limits().loss));
  EXPECT_TRUE(std::isinf(steps.limits().norm));
}

TEST(BadSteps, AreForgivenUpToTheLimitAndNotAtAllWithStop) {
  FaultsDeck deck{.on_bad_step = "skip", .limit = 2};
  BadSteps steps(deck);
  steps.forgive(BadStep(4, "the loss is bad", false));
  steps.forgive(BadStep(4, "the loss is bad", false));  // the same one counts once
  steps.forgive(BadStep(6, "the loss is bad", false));
  EXPECT_TRUE(steps.is_again(4));
  EXPECT_FALSE(steps.is_again(5));
  EXPECT_THROW(steps.forgive(BadStep(7, "the loss is bad", false)), Error);
  deck.on_bad_step = "stop";
  EXPECT_THROW(steps.forgive(BadStep(4, "the loss is bad", false)), BadStep);
}

TEST(BadSteps, FaultsOfTheMachineCountEachTimeAndBlameNoBatch) {
  const FaultsDeck deck{.on_bad_step = "skip", .limit = 3};
  BadSteps steps(deck);
  steps.forgive(BadStep(4, "the loss is bad", false));
  for (int i = 0; i < 2; ++i) steps.forgive(BadStep(5, "the copies differ", false, Fault::machine));
  EXPECT_FALSE(steps.is_again(5)) << "its batch is not to be skipped";
  EXPECT_THROW(steps.forgive(BadStep(5, "the copies differ", false, Fault::machine)), Error);
}

}  // namespace
}  // namespace flanmoe
