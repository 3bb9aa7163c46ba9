#include "stage/selfcheck.hpp"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <functional>

namespace flanmoe {
namespace {

using detail::Trace;

Trace good() {
  Trace trace;
  trace.loss = {3.0, 2.0, 1.0};
  trace.norm = {1.0, 0.5, 0.25};
  trace.state = trace.reread = 7;
  trace.samples = 9;
  return trace;
}

/// What is said of a layout of 2 ranks that did something else than the first one.
std::string wrong_of(const std::function<void(Trace&)>& change, std::int64_t leaves = 0,
                     const std::string& precision = "fp32") {
  Deck deck;
  deck.batch.rows = 8;
  deck.reduction.leaves = leaves;
  deck.run.precision = precision;
  Trace trace = good();
  change(trace);
  std::string wrong;
  detail::agreement(deck, {2, 1}, trace, {1, 1}, good(), wrong);
  return wrong;
}

TEST(Selfcheck, RoundingIsAllowedWithoutLeavesOnly) {
  const auto rounded = [](Trace& trace) { trace.loss[2] *= 1 + 1e-7; };
  EXPECT_EQ(wrong_of(rounded), "");
  EXPECT_EQ(wrong_of(rounded, 8), "not the same bits");
  EXPECT_EQ(wrong_of([](Trace& trace) { trace.state = 8; }, 8), "not the same bits");
}

TEST(Selfcheck, MoreThanRoundingIsWrong) {
  const auto changed = [](Trace& trace) { trace.norm[0] *= 1.001; };
  EXPECT_THAT(wrong_of(changed), testing::HasSubstr("more than rounding"));
  EXPECT_EQ(wrong_of(changed, 0, "bf16"), "");
}

TEST(Selfcheck, NotANumberIsNoAgreement) {
  for (const std::size_t step : {0, 1, 2}) {
    EXPECT_THAT(wrong_of([&](Trace& trace) { trace.loss[step] = std::nan(""); }), testing::HasSubstr("differs by nan"));
    EXPECT_THAT(wrong_of([&](Trace& trace) { trace.norm[step] = std::nan(""); }), testing::HasSubstr("differs by nan"));
  }
}

TEST(Selfcheck, SamplesAndCheckpointAreCompared) {
  EXPECT_EQ(wrong_of([](Trace& trace) { trace.samples = 1; }), "other samples follow");
  EXPECT_EQ(wrong_of([](Trace& trace) { trace.reread = 1; }), "the checkpoint reads differently");
}

}  // namespace
}  // namespace flanmoe
