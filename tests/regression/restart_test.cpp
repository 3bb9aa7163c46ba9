// Stop and go on is exact: killed at any moment, or asked to stop, a run ends with the bits of a run left alone.
#include <gtest/gtest.h>
#include <signal.h>

#include <chrono>
#include <random>
#include <thread>

#include "base/error.hpp"
#include "base/hdf5.hpp"
#include "regression/program.hpp"

namespace flanmoe::regression {
namespace {

namespace fs = std::filesystem;
using std::chrono::microseconds;

constexpr int kRanks = 2;
constexpr int kSteps = 16;

class Restart : public testing::Test {
 protected:
  static void SetUpTestSuite() {
    silence_hdf5();
    workplace_ = std::make_unique<Workplace>();
    shard_ = write_text(*workplace_);
    const Ended ended = run(kRanks, command("undisturbed"));
    ASSERT_EQ(ended.exit_code, 0) << ended.output;
  }
  static void TearDownTestSuite() { workplace_.reset(); }

  static std::string dir(const std::string& name) { return workplace_->path(name); }
  static Words command(const std::string& name, const Words& more = {}) {
    const Words words = smoke(shard_, dir(name),
                              {fmt::format("--run.steps={}", kSteps), "--checkpoint.every=1", "--checkpoint.keep=2",
                               "--parallel.expert=2", "--model.dropout=0.1", "--batch.microbatch_rows=3"});
    return with(words, more);
  }
  /// Goes on with the run and compares its end with the undisturbed one.
  static void expect_same_end(const std::string& name) {
    const Ended ended = run(kRanks, command(name));
    ASSERT_EQ(ended.exit_code, 0) << ended.output;
    EXPECT_EQ(difference_of_metrics(dir("undisturbed"), dir(name)), "");
    EXPECT_EQ(difference_of_checkpoints(newest_of(dir("undisturbed")), newest_of(dir(name))), "");
    EXPECT_EQ(summary_of(dir(name))["steps"], kSteps);
  }
  static std::int64_t steps_done(const std::string& name) { return count_lines(dir(name) + "/metrics.jsonl"); }
  /// Waits until the condition holds; false when the program ended before.
  template <class Condition>
  static bool wait_until(Program& program, Condition condition) {
    while (!condition()) {
      if (!program.running()) return false;
      std::this_thread::sleep_for(microseconds(200));
    }
    return true;
  }
  static bool checkpoint_under_way(const std::string& name) {
    std::error_code gone;
    for (const auto& entry : fs::directory_iterator(dir(name) + "/checkpoints", gone)) {
      if (!entry.path().filename().string().starts_with("step-")) return true;
    }
    return false;
  }

  static std::unique_ptr<Workplace> workplace_;
  static std::string shard_;
};
std::unique_ptr<Workplace> Restart::workplace_;
std::string Restart::shard_;

TEST_F(Restart, KilledAtTenRandomMomentsEndsWithTheSameBits) {
  std::mt19937 random(20230524);
  int killed_in_checkpoint = 0;
  for (int kill = 0; kill < 10; ++kill) {
    const std::string name = fmt::format("killed_{}", kill);
    const bool in_checkpoint = kill % 2 == 1;
    const auto after_step = std::int64_t(random() % (kSteps - 8));
    const microseconds delay(random() % 30000);
    SCOPED_TRACE(
        fmt::format("{}: after step {}, {}", name, after_step,
                    in_checkpoint ? "when a checkpoint is under way" : fmt::format("{} us later", delay.count())));
    {
      Program program(kRanks, command(name));
      ASSERT_TRUE(wait_until(program, [&] { return steps_done(name) >= after_step; })) << program.output();
      if (in_checkpoint) {
        wait_until(program, [&] { return checkpoint_under_way(name); });
      } else {
        std::this_thread::sleep_for(delay);
      }
      program.kill_all();
    }
    ASSERT_FALSE(fs::exists(dir(name) + "/summary.json")) << "it was over before it was killed";
    killed_in_checkpoint += checkpoint_under_way(name) ? 1 : 0;

    expect_same_end(name);
    EXPECT_FALSE(checkpoint_under_way(name)) << "leftovers of the killed run were not removed";
    fs::remove_all(dir(name));
  }
  EXPECT_GE(killed_in_checkpoint, 1) << "no kill met a checkpoint: the test does not test what it says";
}

TEST_F(Restart, SigtermToOneRankStopsAllWithACheckpointAndGoesOnExactly) {
  for (const int signal : {SIGTERM, SIGUSR1}) {
    const std::string name = fmt::format("signal_{}", signal);
    SCOPED_TRACE(name);
    {
      Program program(kRanks, command(name, {"--checkpoint.every=0"}));
      ASSERT_TRUE(wait_until(program, [&] { return steps_done(name) >= 3; })) << program.output();
      kill(program.process_of_rank(1), signal);
      EXPECT_EQ(program.wait(), 75) << program.output();
      EXPECT_NE(program.output().find("stopped early after step"), std::string::npos) << program.output();
    }
    EXPECT_LT(steps_done(name), kSteps);
    EXPECT_NE(newest_of(dir(name)), "");

    expect_same_end(name);
  }
}

TEST_F(Restart, SignalWhileACheckpointIsWrittenEndsWithThatCheckpoint) {
  // A signal that came a moment late is seen after the next step: another run is signalled then.
  std::int64_t done = 0;
  for (int attempt = 1; done != 5 && attempt <= 6; ++attempt) {
    const std::string name = fmt::format("in_checkpoint_{}", attempt);
    Program program(kRanks, command(name, {"--checkpoint.every=5", "--checkpoint.background=false"}));
    ASSERT_TRUE(wait_until(program, [&] { return checkpoint_under_way(name); })) << program.output();
    kill(program.process_of_rank(1), SIGUSR1);
    ASSERT_EQ(program.wait(), 75) << program.output();
    done = steps_done(name);
    EXPECT_NE(newest_of(dir(name)).find(fmt::format("step-{:08}", done)), std::string::npos) << newest_of(dir(name));
  }
  EXPECT_EQ(done, 5);
}

TEST_F(Restart, TimeLimitStopsAfterAStepAndGoesOnElsewhereWithTheSameLosses) {
  const Ended first = run(kRanks, command("limited", {"--run.stop_after_minutes=1e-6"}));
  EXPECT_EQ(first.exit_code, 75) << first.output;
  EXPECT_EQ(steps_done("limited"), 1);

  const Ended second = run(1, command("limited", {"--parallel.expert=1"}));

  ASSERT_EQ(second.exit_code, 0) << second.output;
  const auto expected = metrics_of(dir("undisturbed")), metrics = metrics_of(dir("limited"));
  ASSERT_EQ(metrics.size(), expected.size());
  for (std::size_t i = 0; i < metrics.size(); ++i) {
    const double loss = expected[i]["loss"];
    EXPECT_NEAR(metrics[i]["loss"].get<double>(), loss, 1e-5 * loss) << "step " << i + 1;
  }
}

TEST_F(Restart, StopsBeforeTheEndOfTheBatchJob) {
  const std::string in_a_minute = fmt::format("SLURM_JOB_END_TIME={}", std::time(nullptr) + 60);

  const Ended soon = run(kRanks, command("job", {"--run.stop_before_minutes=2"}), {in_a_minute});
  const Ended later = run(kRanks, command("job", {"--run.stop_before_minutes=0.01"}), {in_a_minute});

  EXPECT_EQ(soon.exit_code, 75) << soon.output;
  EXPECT_EQ(later.exit_code, 0) << later.output;
  EXPECT_EQ(difference_of_metrics(dir("undisturbed"), dir("job")), "");
}

TEST_F(Restart, CompleteRunSaysSoAndChangesNothing) {
  const std::string metrics = fmt::format("{}/metrics.jsonl", dir("undisturbed"));
  const auto written = fs::last_write_time(metrics);

  const Ended ended = run(kRanks, command("undisturbed"));

  EXPECT_EQ(ended.exit_code, 0);
  EXPECT_NE(ended.output.find("complete"), std::string::npos) << ended.output;
  EXPECT_EQ(fs::last_write_time(metrics), written);
}

TEST_F(Restart, MoreStepsGoOnFromTheEnd) {
  fs::copy(dir("undisturbed"), dir("longer"), fs::copy_options::recursive);

  const Ended ended = run(kRanks, command("longer", {fmt::format("--run.steps={}", kSteps + 2)}));

  EXPECT_EQ(ended.exit_code, 0) << ended.output;
  EXPECT_EQ(steps_done("longer"), kSteps + 2);
  EXPECT_EQ(summary_of(dir("longer"))["last_session"]["steps"], 2);
}

TEST_F(Restart, DeckThatChangesTheTrainingIsRefusedWithTheKeys) {
  const Ended ended = run(kRanks, command("undisturbed", {"--optimizer.learning_rate=0.25", "--run.seed=7"}));

  EXPECT_EQ(ended.exit_code, 2);
  EXPECT_NE(ended.output.find("optimizer.learning_rate: then 0.3, now 0.25"), std::string::npos) << ended.output;
  EXPECT_NE(ended.output.find("run.seed: then 1, now 7"), std::string::npos) << ended.output;
  EXPECT_EQ(steps_done("undisturbed"), kSteps);
}

}  // namespace
}  // namespace flanmoe::regression
