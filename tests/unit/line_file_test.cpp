// Files that grow by whole records, on disks that fill up.
#include "base/line_file.hpp"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include "base/log.hpp"
#include "checkpoint_fixture.hpp"
#include "file_size_limit.hpp"
#include "train/metrics.hpp"
#include "train/tensorboard.hpp"

namespace flanmoe {
namespace {

using test::error_message;
using test::FileSizeLimit;

class FullDisk : public testing::Test {
 protected:
  std::string path(const std::string& name) const { return folder_.file(name); }
  std::string text(const std::string& name) const {
    const auto bytes = test::file_bytes(path(name));
    return {bytes.begin(), bytes.end()};
  }
  static StepRecord record(std::int64_t step) {
    StepRecord record;
    record.step = step;
    record.loss = 1.0 / double(step);
    record.step_seconds = 0.5;
    return record;
  }

 private:
  TemporaryFolder folder_;
};

TEST_F(FullDisk, AnAppendIsWholeOrLeavesNothing) {
  LineFile file(path("lines"));
  file.append("one\ntwo\n");
  {
    const FileSizeLimit limit(10);  // room for two bytes of the next line
    EXPECT_EQ(error_message([&] { file.append("three\n"); }), path("lines") + ": cannot write: File too large");
    EXPECT_EQ(text("lines"), "one\ntwo\n");
  }
  file.append("four\n");
  EXPECT_EQ(text("lines"), "one\ntwo\nfour\n");
  LineFile(path("lines")).append("five\n");
  EXPECT_EQ(text("lines"), "one\ntwo\nfour\nfive\n");
  EXPECT_EQ(error_message([&] { LineFile(path("none/lines")); }),
            path("none/lines") + ": cannot open: No such file or directory");
  LineFile full("/dev/full");
  EXPECT_EQ(error_message([&] { full.append("six\n"); }), "/dev/full: cannot write: No space left on device");
}

TEST_F(FullDisk, LinesOfTheMetricsWaitForRoom) {
  MetricsFile metrics(path("metrics.jsonl"), 0);
  metrics.append(record(1));
  const std::string first = text("metrics.jsonl");
  {
    const FileSizeLimit limit(first.size() + 20);
    for (const int step : {2, 3}) EXPECT_THROW(metrics.append(record(step)), Error);
    EXPECT_THROW(metrics.flush_to_disk(), Error) << "no checkpoint may know of more steps than the metrics";
    EXPECT_EQ(text("metrics.jsonl"), first);
  }
  metrics.append(record(4));
  std::string all;
  for (const int step : {1, 2, 3, 4}) all += to_json_line(record(step)) + "\n";
  EXPECT_EQ(text("metrics.jsonl"), all);
}

TEST_F(FullDisk, EventsForTensorboardEndWithAWholeFrame) {
  const auto file_of_events = [&] { return std::filesystem::directory_iterator(path("tensorboard"))->path().string(); };
  EventFile events(path("tensorboard"), path("none"));
  events.append(record(1));
  const auto before = test::file_bytes(file_of_events());
  {
    const FileSizeLimit limit(before.size() + 30);
    EXPECT_NO_THROW(events.append(record(2)));
  }
  EXPECT_EQ(test::file_bytes(file_of_events()), before);
}

TEST_F(FullDisk, TheLogLosesLinesAndTheProgramGoesOn) {
  configure_log(0, path("log"));
  log_info("a first line of some length");
  testing::internal::CaptureStderr();
  {
    const FileSizeLimit limit(40);
    for (const char* line : {"this one has no room", "nor has this one"}) EXPECT_NO_THROW(log_info("{}", line));
  }
  const std::string said = testing::internal::GetCapturedStderr();  // in a file, with the same limit
  log_info("last");
  configure_log(0, "");

  EXPECT_EQ(text("log"), "a first line of some length\nlast\n");
  EXPECT_EQ(said.substr(0, 8), "rank 0: ");
}

TEST_F(FullDisk, StandardOutputThatHasNoRoomEndsNothing) {
  std::fflush(stdout);
  const int kept = dup(STDOUT_FILENO), full = open("/dev/full", O_WRONLY);
  dup2(full, STDOUT_FILENO);
  configure_log(0, path("log"));
  for (int i = 0; i < 3; ++i) EXPECT_NO_THROW(log_info("{}", std::string(5000, 'x')));
  EXPECT_NO_THROW(log_progress("step", true));
  std::fflush(stdout);
  dup2(kept, STDOUT_FILENO);
  std::clearerr(stdout);
  close(kept);
  close(full);
  configure_log(0, "");

  EXPECT_EQ(text("log").size(), 3 * 5001 + 5U);
}

}  // namespace
}  // namespace flanmoe
