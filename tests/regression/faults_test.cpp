// What goes wrong in a run: disks, folders, files, numbers. No fault loses a published checkpoint, and after it the run
// goes on to the same end.
#include <gtest/gtest.h>
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
#include "regression/program.hpp"
#include "train/run_folder.hpp"

namespace flanmoe::regression {
namespace {

namespace fs = std::filesystem;

constexpr int kSteps = 12;

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

class Faults : public testing::Test {
 protected:
  static void SetUpTestSuite() {
    silence_hdf5();
    workplace_ = std::make_unique<Workplace>();
    shard_ = write_text(*workplace_);
    const Ended ended = run(2, command("undisturbed"));
    ASSERT_EQ(ended.exit_code, 0) << ended.output;
  }
  static void TearDownTestSuite() { workplace_.reset(); }

  static std::string dir(const std::string& name) { return workplace_->path(name); }
  static Words command(const std::string& name, const Words& more = {}) {
    return with(smoke(shard_, dir(name),
                      {fmt::format("--run.steps={}", kSteps), "--checkpoint.every=2", "--checkpoint.keep=2",
                       "--parallel.expert=2", "--model.dropout=0.1"}),
                more);
  }
  static void expect_same_end(const std::string& name, const std::string& as = "undisturbed") {
    EXPECT_EQ(difference_of_metrics(dir(as), dir(name)), "");
    EXPECT_EQ(difference_of_checkpoints(newest_of(dir(as)), newest_of(dir(name))), "");
  }
  static std::vector<nlohmann::json> events_of(const std::string& name, const std::string& kind) {
    std::vector<nlohmann::json> events;
    std::ifstream in(dir(name) + "/events.jsonl");
    for (std::string line; std::getline(in, line);) {
      auto event = nlohmann::json::parse(line);
      if (event["event"] == kind) events.push_back(event);
    }
    return events;
  }
  static bool says(const Ended& ended, const std::string& part) { return ended.output.find(part) != std::string::npos; }

  static std::unique_ptr<Workplace> workplace_;
  static std::string shard_;
};
std::unique_ptr<Workplace> Faults::workplace_;
std::string Faults::shard_;

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
  while (count_lines(dir(name) + "/metrics.jsonl") < 3 && program.running()) {
    std::this_thread::sleep_for(std::chrono::microseconds(500));
  }
  const rlimit small{2'000'000, RLIM_INFINITY};  // less than the room that a checkpoint asks for
  ASSERT_EQ(prlimit(program.process_of_rank(0), RLIMIT_FSIZE, &small, nullptr), 0) << std::strerror(errno);

  EXPECT_EQ(program.wait(), 1) << program.output();
  EXPECT_NE(program.output().find("was not written"), std::string::npos) << program.output();
  EXPECT_NE(program.output().find("File too large"), std::string::npos) << program.output();
  EXPECT_NE(newest_of(dir(name)), "");
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
  while (count_lines(dir(name) + "/metrics.jsonl") < 3 && program.running()) {
    std::this_thread::sleep_for(std::chrono::microseconds(500));
  }
  fs::rename(dir(name), dir("elsewhere"));

  EXPECT_EQ(program.wait(), 1) << program.output();
  const std::string output = program.output();  // it may be found before a checkpoint, or while one is written
  EXPECT_TRUE(output.find("lock is gone") != std::string::npos || output.find("was not written") != std::string::npos)
      << output;
  EXPECT_FALSE(fs::exists(dir(name)));
}

TEST_F(Faults, ADamagedNewestCheckpointIsNamedAndTheOlderOneGoesOn) {
  fs::copy(dir("undisturbed"), dir("damaged"), fs::copy_options::recursive);
  fs::remove(dir("damaged") + "/summary.json");
  const std::string newest = newest_of(dir("damaged"));
  fs::resize_file(newest + "/checkpoint.h5", fs::file_size(newest + "/checkpoint.h5") / 2);
  const Ended cut = run(2, command("damaged"));

  EXPECT_EQ(cut.exit_code, 1) << cut.output;
  EXPECT_TRUE(says(cut, newest + "/checkpoint.h5")) << cut.output;
  fs::remove_all(newest);
  EXPECT_EQ(run(2, command("damaged")).exit_code, 0);
  expect_same_end("damaged");
}

TEST_F(Faults, TimesOfFilesDoNotDecideWhichCheckpointIsTheNewest) {
  fs::copy(dir("undisturbed"), dir("clock"), fs::copy_options::recursive);
  fs::remove(dir("clock") + "/summary.json");
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
                        "--optimizer.learning_rate=0.03"};
  const Ended whole = run(2, command("spikes", spikes));
  ASSERT_EQ(whole.exit_code, 0) << whole.output;
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

TEST_F(Faults, ARunWhoseLastBatchWasSkippedIsComplete) {
  const std::string name = "last_skipped";
  fs::copy(dir("undisturbed"), dir(name), fs::copy_options::recursive);
  fs::remove(dir(name) + "/summary.json");
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
