// Signals and clocks that ask a run to stop.
#include "parallel/stop.hpp"

#include <gtest/gtest.h>
#include <unistd.h>

#include <csignal>
#include <cstdlib>
#include <ctime>

namespace flanmoe {
namespace {

TEST(StopSignals, AreRememberedByNameAndForgottenByTheNextRun) {
  for (const auto& [signal, name] : {std::pair{SIGTERM, "SIGTERM"}, {SIGUSR1, "SIGUSR1"}}) {
    const StopSignals signals;
    EXPECT_EQ(stop_signal(), nullptr);
    EXPECT_FALSE(StopRequest(RunDeck{}).made());

    std::raise(signal);

    EXPECT_STREQ(stop_signal(), name);
    EXPECT_TRUE(StopRequest(RunDeck{}).made());
  }
}

TEST(StopSignals, EndTheProcessAgainOnceTheRunIsOver) {
  { const StopSignals signals; }

  EXPECT_EXIT(std::raise(SIGTERM), testing::KilledBySignal(SIGTERM), "");
}

TEST(StopSignals, TwiceAtOnceIsOneRequestAndLaterEndsTheProcess) {
  const auto twice = [](unsigned milliseconds, int second) {
    const StopSignals signals;
    std::raise(SIGUSR1);
    usleep(milliseconds * 1000);
    std::raise(second);
    _exit(75);
  };

  EXPECT_EXIT(twice(0, SIGTERM), testing::ExitedWithCode(75), "^$");
  EXPECT_EXIT(twice(StopSignals::kSameRequestSeconds * 1000 + 100, SIGTERM), testing::KilledBySignal(SIGTERM),
              "second signal");
}

TEST(StopRequest, TimeLimitCountsFromItsMaking) {
  RunDeck run;
  run.stop_after_minutes = 0.05 / 60;

  const StopRequest stop(run);

  EXPECT_FALSE(stop.made());
  usleep(60000);
  EXPECT_TRUE(stop.made());
}

TEST(StopRequest, MinutesBeforeTheEndOfTheJob) {
  RunDeck run;
  run.stop_before_minutes = 5;
  const auto end_in = [&](int seconds) {
    setenv("SLURM_JOB_END_TIME", std::to_string(std::time(nullptr) + seconds).c_str(), 1);
    return StopRequest(run).made();
  };

  EXPECT_FALSE(end_in(5 * 60 + 30));
  EXPECT_TRUE(end_in(5 * 60 - 30));
  run.stop_before_minutes = 0;
  EXPECT_FALSE(end_in(-30));
  run.stop_before_minutes = 5;
  unsetenv("SLURM_JOB_END_TIME");
  EXPECT_FALSE(StopRequest(run).made());
}

}  // namespace
}  // namespace flanmoe
