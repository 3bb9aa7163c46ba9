// Signals that ask a run to stop.
#include "train/stop.hpp"

#include <gtest/gtest.h>

#include <csignal>

namespace flanmoe {
namespace {

TEST(StopSignals, AreRememberedByNameAndForgottenByTheNextRun) {
  for (const auto& [signal, name] : {std::pair{SIGTERM, "SIGTERM"}, {SIGUSR1, "SIGUSR1"}}) {
    const StopSignals signals;
    EXPECT_EQ(signals.received(), nullptr);

    std::raise(signal);

    EXPECT_STREQ(signals.received(), name);
  }
}

TEST(StopSignals, EndTheProcessAgainOnceTheRunIsOver) {
  { const StopSignals signals; }

  EXPECT_EXIT(std::raise(SIGTERM), testing::KilledBySignal(SIGTERM), "");
}

}  // namespace
}  // namespace flanmoe
