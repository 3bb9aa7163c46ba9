// What goes wrong in a run: disks, folders, files, numbers. No fault loses a published checkpoint, and after it the run
// goes on to the same end.
#include <gtest/gtest.h>
#include <signal.h>
#include <sys/mount.h>
#include <sys/resource.h>
#include <unistd.h>

#include <chrono>
#include <cstring>
#include <fstream>
#include <set>
#include <thread>

#include "base/error.hpp"
#include "base/hdf5.hpp"
#include "regression/faults_fixture.hpp"
#include "train/run_folder.hpp"

namespace flanmoe::regression {
namespace {

/// A small disk of its own in place of a folder, for those who may mount one.
class SmallDisk {
 public:
  explicit SmallDisk(std::string folder) : folder_(std::move(folder)) { fs::create_directories(folder_); }
  ~SmallDisk() {
    if (mounted_) umount2(folder_.c_str(), MNT_DETACH);
  }
  SmallDisk(const SmallDisk&) = delete;
  SmallDisk& operator=(const SmallDisk&) = delete;
  /// Makes the disk, or changes its size; the reason why not.
  std::string resize(std::uintmax_t bytes, unsigned long flags = 0) {
    const std::string options = fmt::format("size={}", bytes);
    if (mount("tmpfs", folder_.c_str(), "tmpfs", flags | (mounted_ ? MS_REMOUNT : 0), options.c_str()) != 0) {
      return std::strerror(errno);
    }
    mounted_ = true;
    return "";
  }

 private:
  std::string folder_;
  bool mounted_ = false;
};

/// The files of rank 0 cannot grow beyond so many bytes.
void limit_files(const Program& program, rlim_t bytes) {
  const rlimit limit{bytes, RLIM_INFINITY};
  ASSERT_EQ(prlimit(program.process_of_rank(0), RLIMIT_FSIZE, &limit, nullptr), 0) << std::strerror(errno);
}

/// The steps of a metrics file are 1, 2, ..., and every line of every file that grows is whole.
void expect_whole_lines(const std::string& run_dir) {
  const auto records = metrics_of(run_dir);  // which parses them
  for (std::size_t i = 0; i < records.size(); ++i) EXPECT_EQ(records[i]["step"], i + 1);
  for (const char* file : {"metrics.jsonl", "events.jsonl", "log"}) {
    EXPECT_TRUE(read_file(run_dir + "/" + file).ends_with('\n')) << file;
  }
}

TEST_F(Faults, EverySaveIsInTheLogAndInTheEventsWithBytesAndSeconds) {
  const auto saves = events_of("undisturbed", "checkpoint");
  ASSERT_EQ(saves.size(), std::size_t(kSteps / 2));
  for (const auto& save : saves) {
    EXPECT_GT(save["bytes"].get<double>(), 1e4);
    EXPECT_GT(save["seconds"].get<double>(), 0);
    EXPECT_GT(save["gb_per_second"].get<double>(), 0);
    EXPECT_GT(save["stall_seconds"].get<double>(), 0);
  }
}

TEST_F(Faults, StandingStillForCheckpointsChangesNoBit) {
  const Ended ended = run(2, command("foreground", {"--checkpoint.background=false"}));
  ASSERT_EQ(ended.exit_code, 0) << ended.output;
  expect_same_end("foreground");
}

TEST_F(Faults, AFullDiskStopsOrDoesNotAsTheDeckSaysAndTheOlderCheckpointGoesOn) {
  // Before a file is made, room for its structure is asked for, generously (3.2 MB here): there is that once, but not
  // with a checkpoint beside it.
  const std::uintmax_t room_for_one = 3'400'000;
  ASSERT_GT(fs::file_size(newest_of(dir("undisturbed")) + "/checkpoint.h5"), 400'000U);
  for (const char* policy : {"stop", "continue"}) {
    const std::string name = fmt::format("full_{}", policy);
    SmallDisk disk(dir(name) + "/checkpoints");
    if (const std::string why = disk.resize(room_for_one); !why.empty()) {
      GTEST_SKIP() << "no file system can be mounted here: " << why;
    }
    const Ended full = run(2, command(name, {fmt::format("--checkpoint.on_failure={}", policy)}));

    EXPECT_EQ(full.exit_code, 1) << full.output;  // with continue, the one that the run ends with is missing
    EXPECT_TRUE(says(full, "the checkpoint of step 4 was not written")) << full.output;
    EXPECT_NE(newest_of(dir(name)).find("step-00000002"), std::string::npos) << newest_of(dir(name));
    EXPECT_EQ(count_lines(dir(name) + "/metrics.jsonl"), std::string(policy) == "stop" ? 4 : kSteps) << full.output;

    ASSERT_EQ(disk.resize(20 * room_for_one), "");
    const Ended ended = run(2, command(name));
    EXPECT_EQ(ended.exit_code, 0) << ended.output;
    expect_same_end(name);
  }
}

TEST_F(Faults, AFileSizeLimitIsAnErrorOfTheCheckpointAndNotTheEndByASignal) {
  const std::string name = "file_size";
  Program program(2, command(name, {"--run.steps=400", "--checkpoint.on_failure=stop"}));
  wait_for_steps(program, name, 3);
  limit_files(program, 2'000'000);  // less than the room that a checkpoint asks for

  EXPECT_EQ(program.wait(), 1) << program.output();
  EXPECT_NE(program.output().find("was not written"), std::string::npos) << program.output();
  EXPECT_NE(program.output().find("File too large"), std::string::npos) << program.output();
  EXPECT_NE(newest_of(dir(name)), "");
}

TEST_F(Faults, NoRoomForMetricsEndsTheRunWithWholeLinesAndItsCheckpoint) {
  const std::string name = "metrics_stop";
  copy_undisturbed(name);
  Program program(2, command(name, {"--run.steps=1000000", "--checkpoint.every=0"}));
  wait_for_steps(program, name, kSteps + 3);
  limit_files(program, fs::file_size(dir(name) + "/metrics.jsonl") + 100);

  EXPECT_EQ(program.wait(), 1) << program.output();
  EXPECT_NE(program.output().find("metrics.jsonl: cannot write: File too large"), std::string::npos)
      << program.output();
  expect_whole_lines(dir(name));
  EXPECT_EQ(difference_of_checkpoints(newest_of(dir("undisturbed")), newest_of(dir(name))), "");
  const Ended ended = run(2, command(name, {fmt::format("--run.steps={}", kSteps + 2)}));
  EXPECT_EQ(ended.exit_code, 0) << ended.output;
  EXPECT_EQ(count_lines(dir(name) + "/metrics.jsonl"), kSteps + 2);
}

TEST_F(Faults, NoRoomForMetricsDoesNotEndARunThatIsToContinueAndNoLineIsLost) {
  const std::string name = "metrics_continue", metrics = dir(name) + "/metrics.jsonl";
  copy_undisturbed(name);
  Program program(2, command(name, {"--run.steps=1000000", "--checkpoint.on_failure=continue"}));
  const auto wait_until = [&](const auto& condition) {
    while (!condition() && program.running()) std::this_thread::sleep_for(std::chrono::milliseconds(1));
  };
  wait_for_steps(program, name, kSteps + 3);
  limit_files(program, fs::file_size(metrics) + 100);
  wait_until([&] { return !events_of(name, "checkpoint_failed").empty(); });
  EXPECT_EQ(events_of(name, "metrics_failed").size(), 1U) << "said once";
  EXPECT_TRUE(read_file(metrics).ends_with('\n'));
  const std::int64_t lines = count_lines(metrics);
  limit_files(program, RLIM_INFINITY);
  const auto saves = events_of(name, "checkpoint").size();
  wait_until([&] { return events_of(name, "checkpoint").size() > saves + 1; });
  ASSERT_TRUE(program.running()) << program.output();
  kill(program.process_of_rank(0), SIGTERM);

  EXPECT_EQ(program.wait(), 75) << program.output();
  expect_whole_lines(dir(name));
  EXPECT_GT(count_lines(metrics), lines);
  EXPECT_NE(newest_of(dir(name)).find(fmt::format("step-{:08}", count_lines(metrics))), std::string::npos);
}

TEST_F(Faults, ARunIsNotDoneBeforeAllItsMetricsAreWritten) {
  const std::string name = "metrics_at_the_end";
  copy_undisturbed(name);
  Program program(2, command(name, {fmt::format("--run.steps={}", kSteps + 60), "--checkpoint.every=0",
                                    "--checkpoint.final=false", "--checkpoint.on_failure=continue"}));
  wait_for_steps(program, name, kSteps + 3);
  limit_files(program, fs::file_size(dir(name) + "/metrics.jsonl") + 100);

  EXPECT_EQ(program.wait(), 1) << program.output();
  EXPECT_NE(program.output().find("metrics.jsonl: cannot write: File too large"), std::string::npos)
      << program.output();
  EXPECT_FALSE(fs::exists(dir(name) + "/summary.json"));
  expect_whole_lines(dir(name));
}

TEST_F(Faults, ADiskThatMayOnlyBeReadIsSaidAndItsCheckpointStays) {
  const std::string name = "read_only";
  SmallDisk disk(dir(name) + "/checkpoints");
  if (const std::string why = disk.resize(64 << 20); !why.empty()) {
    GTEST_SKIP() << "no file system can be mounted here: " << why;
  }
  ASSERT_EQ(run(2, command(name, {"--run.stop_after_minutes=1e-6"})).exit_code, 75);
  ASSERT_EQ(disk.resize(64 << 20, MS_RDONLY), "");
  const Ended ended = run(2, command(name));

  EXPECT_EQ(ended.exit_code, 1) << ended.output;
  EXPECT_TRUE(says(ended, "Read-only file system")) << ended.output;
  EXPECT_NE(newest_of(dir(name)).find("step-00000001"), std::string::npos);
  ASSERT_EQ(disk.resize(64 << 20), "");
  EXPECT_EQ(run(2, command(name)).exit_code, 0);
  expect_same_end(name);
}

TEST_F(Faults, AFolderThatIsTakenAwayIsNotMadeAnew) {
  const std::string name = "taken";
  Program program(2, command(name, {"--run.steps=400"}));
  wait_for_steps(program, name, 3);
  fs::rename(dir(name), dir("elsewhere"));

  EXPECT_EQ(program.wait(), 1) << program.output();
  const std::string output = program.output();  // it may be found before a checkpoint, or while one is written
  EXPECT_TRUE(output.find("lock is gone") != std::string::npos || output.find("was not written") != std::string::npos)
      << output;
  EXPECT_FALSE(fs::exists(dir(name)));
}

TEST_F(Faults, TimesOfFilesDoNotDecideWhichCheckpointIsTheNewest) {
  copy_undisturbed("clock");
  const auto year = std::chrono::hours(24 * 365);
  const std::string checkpoints = dir("clock") + "/checkpoints";
  fs::last_write_time(checkpoints + "/step-00000010", fs::file_time_type::clock::now() + year);
  fs::last_write_time(checkpoints + "/step-00000012", fs::file_time_type::clock::now() - year);
  const Ended ended = run(2, command("clock", {fmt::format("--run.steps={}", kSteps + 1)}));

  EXPECT_EQ(ended.exit_code, 0) << ended.output;
  EXPECT_TRUE(says(ended, "(12 steps,")) << ended.output;
}

TEST_F(Faults, StepsThatAreBadTwiceAreSkippedAndARestartSkipsTheSame) {
  const Words spikes = {"--faults.on_bad_step=skip",
                        "--faults.norm_spike=1.02",
                        "--faults.limit=100",
                        "--run.steps=20",
                        "--checkpoint.every=3",
                        "--optimizer.name=adamw",
                        "--optimizer.schedule=constant",
                        "--optimizer.warmup_steps=0",
                        "--optimizer.clip_norm=0",
                        "--optimizer.learning_rate=0.03",
                        "--batch.microbatch_rows=1"};  // so many that experts have packed copies
  const Ended whole = run(2, command("spikes", spikes));
  ASSERT_EQ(whole.exit_code, 0) << whole.output;
  const Ended plain = run(2, command("spikes_plain", with(spikes, {"--moe.packed_weights=false"})));
  ASSERT_EQ(plain.exit_code, 0) << plain.output;
  expect_same_end("spikes_plain", "spikes");
  const auto back = events_of("spikes", "went_back");
  std::set<std::int64_t> skipped;  // a step that lies behind a later bad one is skipped again on the way
  for (const auto& event : events_of("spikes", "batch_skipped")) skipped.insert(event["step"].get<std::int64_t>());
  ASSERT_GE(skipped.size(), 1U) << "no step was bad: the test does not test what it says\n" << whole.output;
  EXPECT_EQ(back.size(), skipped.size());
  // What going back repeats counts in the parts as it does in the whole.
  const auto session = summary_of(dir("spikes"))["last_session"];
  double parts = 0;
  for (const auto& part : session["part_seconds"]) parts += part.get<double>();
  EXPECT_GT(parts, 0.95 * session["seconds"].get<double>());
  EXPECT_EQ(count_lines(dir("spikes") + "/metrics.jsonl"), 20 - std::int64_t(skipped.size()));
  EXPECT_NE(newest_of(dir("spikes")).find("step-00000020"), std::string::npos);

  fs::copy(dir("spikes"), dir("spikes_again"), fs::copy_options::recursive);
  fs::remove(dir("spikes_again") + "/summary.json");
  fs::remove_all(newest_of(dir("spikes_again")));
  const Ended again = run(2, command("spikes_again", spikes));
  EXPECT_EQ(again.exit_code, 0) << again.output;
  expect_same_end("spikes_again", "spikes");
}

/// Behind every skipped step stands a checkpoint: who goes on from it has the rounded weights of who went past.
TEST_F(Faults, ARestartBehindASkippedStepRoundsItsWeightsTheSame) {
  const Words spikes = {"--faults.on_bad_step=skip",
                        "--faults.norm_spike=1.02",
                        "--faults.limit=100",
                        "--run.steps=20",
                        "--checkpoint.every=1",
                        "--checkpoint.keep=100",
                        "--run.precision=bf16",
                        "--optimizer.stochastic_rounding=true",
                        "--optimizer.name=adamw",
                        "--optimizer.schedule=constant",
                        "--optimizer.warmup_steps=0",
                        "--optimizer.clip_norm=0",
                        "--optimizer.learning_rate=0.03"};
  const Ended whole = run(2, command("rounded", spikes));
  ASSERT_EQ(whole.exit_code, 0) << whole.output;
  std::set<std::int64_t> skipped;
  for (const auto& event : events_of("rounded", "batch_skipped")) skipped.insert(event["step"].get<std::int64_t>());
  // The last one behind which a step was taken at once: a bad one goes back, and a checkpoint that is read rounds anew.
  std::int64_t last = 0;
  for (const std::int64_t step : skipped) {
    if (step < 20 && !skipped.contains(step + 1)) last = step;
  }
  ASSERT_GE(last, 1) << "no step was bad: the test does not test what it says\n" << whole.output;
  fs::copy(dir("rounded"), dir("rounded_again"), fs::copy_options::recursive);
  fs::remove(dir("rounded_again") + "/summary.json");
  for (std::int64_t step = last + 1; step <= 20; ++step) {
    fs::remove_all(dir("rounded_again") + fmt::format("/checkpoints/step-{:08}", step));
  }
  const Ended again = run(2, command("rounded_again", spikes));
  EXPECT_EQ(again.exit_code, 0) << again.output;
  expect_same_end("rounded_again", "rounded");
}

TEST_F(Faults, ARunWhoseLastBatchWasSkippedIsComplete) {
  const std::string name = "last_skipped";
  copy_undisturbed(name);
  std::string text = read_file(dir(name) + "/metrics.jsonl");
  text.resize(text.rfind('\n', text.size() - 2) + 1);  // what skipping leaves: no line of the last step
  write_file(dir(name) + "/metrics.jsonl", text);
  ASSERT_EQ(run(2, command(name)).exit_code, 0);
  const Ended again = run(2, command(name));

  EXPECT_EQ(summary_of(dir(name))["steps"], kSteps);
  EXPECT_EQ(again.exit_code, 0) << again.output;
  EXPECT_TRUE(says(again, "is complete")) << again.output;
}

TEST_F(Faults, ARunThatGoesWrongForGoodEndsAtTheLimitWithItsCheckpoint) {
  const Ended ended =
      run(2, command("nan", {"--faults.on_bad_step=skip", "--faults.limit=2", "--optimizer.name=adamw",
                             "--optimizer.schedule=constant", "--optimizer.warmup_steps=0", "--optimizer.clip_norm=0",
                             "--optimizer.learning_rate=1e39", "--checkpoint.every=1"}));

  EXPECT_EQ(ended.exit_code, 1) << ended.output;
  EXPECT_TRUE(says(ended, "the loss is not finite")) << ended.output;
  EXPECT_TRUE(says(ended, "faults.limit")) << ended.output;
  EXPECT_EQ(events_of("nan", "batch_skipped").size(), 2U) << ended.output;
  EXPECT_NE(newest_of(dir("nan")), "");
}

}  // namespace
}  // namespace flanmoe::regression
