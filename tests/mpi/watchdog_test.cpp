// Runs itself as jobs that must not survive: tests named DISABLED_ are what the ranks of such a job do.
#include "parallel/watchdog.hpp"

#include <gtest/gtest.h>
#include <unistd.h>

#include <array>
#include <thread>

#include "job_fixture.hpp"

namespace flanmoe {
namespace {

using test::JobResult;
using test::one_rank;
using test::run_job;

bool contains(const std::string& text, const std::string& part) { return text.find(part) != std::string::npos; }

TEST(Jobs, DISABLED_RankOneStaysAway) {
  const Communicator world = Communicator::world();
  const Communicator part = world.split(0, world.rank(), "expert");
  const Watchdog watchdog(std::chrono::seconds(1));
  if (world.rank() == 1) std::this_thread::sleep_for(std::chrono::seconds(50));
  const CollectiveScope outer("write_checkpoint", "world");
  part.barrier();
}

TEST(Watchdog, NamesTheCollectiveThatHangsAndEndsAllRanks) {
  if (!one_rank()) return;
  const JobResult job = run_job("RankOneStaysAway", 3);
  std::array<char, 256> host{};
  gethostname(host.data(), host.size() - 1);

  EXPECT_EQ(job.exit_code, 1) << job.output;
  EXPECT_TRUE(contains(job.output, fmt::format("rank 0 on {}: barrier on communicator expert", host.data())) ||
              contains(job.output, fmt::format("rank 2 on {}: barrier on communicator expert", host.data())))
      << job.output;
  EXPECT_TRUE(contains(job.output, "has not returned after 1 s (limit 1 s)")) << job.output;
  EXPECT_FALSE(contains(job.output, "rank 1 on")) << job.output;
}

TEST(Jobs, DISABLED_RankOneGivesUp) {
  const Communicator world = Communicator::world();
  if (world.rank() == 1) MpiEnvironment::abort(7);
  world.barrier();
}

TEST(Jobs, AbortEndsAllRanksWithItsCode) {
  if (!one_rank()) return;
  const JobResult job = run_job("RankOneGivesUp", 3);

  EXPECT_EQ(job.exit_code, 7) << job.output;
}

TEST(Jobs, DISABLED_RankOneThrows) {
  const Communicator world = Communicator::world();
  if (world.rank() == 1) fail("shard 5 is damaged");
  world.barrier();
}

TEST(Jobs, AnExceptionThatLeavesMpiEndsAllRanks) {
  if (!one_rank()) return;
  const JobResult job = run_job("RankOneThrows", 3, "--gtest_catch_exceptions=0");

  EXPECT_EQ(job.exit_code, 1) << job.output;
}

TEST(Jobs, ATestThatFailsOnOneRankEndsAllAndSaysWhy) {
  if (!one_rank()) return;
  const JobResult job = run_job("RankOneThrows", 3);

  EXPECT_EQ(job.exit_code, 1) << job.output;
  EXPECT_TRUE(contains(job.output, "rank 1: Jobs.DISABLED_RankOneThrows failed")) << job.output;
  EXPECT_TRUE(contains(job.output, "shard 5 is damaged")) << job.output;
}

TEST(Watchdog, LeavesCollectivesThatReturnAlone) {
  const Watchdog watchdog(std::chrono::seconds(1));
  const auto end = std::chrono::steady_clock::now() + std::chrono::milliseconds(1500);
  while (std::chrono::steady_clock::now() < end) {  // many short ones, longer than the limit in all
    const CollectiveScope scope("short", "world");
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
  }
}

TEST(Watchdog, WithoutALimitNeverFires) {
  const Watchdog watchdog(std::chrono::seconds(0));
  const CollectiveScope scope("nothing", "world");
  std::this_thread::sleep_for(std::chrono::milliseconds(300));
}

TEST(CollectiveScope, NestsAndCountsTheOutermostOnly) {
  const double before = seconds_in_collectives();
  const auto pause = std::chrono::milliseconds(20);
  const auto start = std::chrono::steady_clock::now();
  {
    const CollectiveScope outer("outer", "a communicator with a name longer than thirty-one letters");
    const CollectiveScope middle("middle", "world");
    const CollectiveScope inner("inner", "world");
    std::this_thread::sleep_for(pause);
  }
  const double wall = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  const double counted = seconds_in_collectives() - before;

  EXPECT_GE(counted, 0.02);
  EXPECT_LE(counted, wall);
}

}  // namespace
}  // namespace flanmoe
