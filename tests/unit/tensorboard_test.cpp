// Event files: the bytes that TensorBoard's own writer writes, and steps that appear once.
#include "train/tensorboard.hpp"

#include <gtest/gtest.h>

#include <filesystem>

#include "data_fixture.hpp"

namespace flanmoe {
namespace {

std::string bytes_of(const std::string& path) {
  const std::vector<char> bytes = file_bytes(path);
  return {bytes.begin(), bytes.end()};
}

std::string only_file_in(const std::string& folder) {
  std::vector<std::string> files;
  for (const auto& entry : std::filesystem::directory_iterator(folder)) files.push_back(entry.path().string());
  EXPECT_EQ(files.size(), 1U);
  return files.empty() ? "" : files.front();
}

StepRecord record(std::int64_t step) {
  StepRecord r;
  r.step = step;
  r.loss = 4.0 / double(step);
  r.tokens = 100;
  r.step_seconds = 0.5;
  r.moe.push_back({.layer = "encoder/layer_01", .load_E = {0.25, 0.75}, .drop_fraction = 0.125});
  return r;
}

/// Steps of the events in a file, in order.
std::vector<std::int64_t> steps_in(const std::string& bytes) {
  std::vector<std::int64_t> steps;
  for (std::size_t at = 0; at < bytes.size();) {
    std::uint64_t length = 0;
    std::memcpy(&length, &bytes[at], sizeof length);
    // wall time (9 bytes), then key and varint of the step, small here
    if (bytes[at + 12 + 9] == 0x10) steps.push_back(bytes[at + 12 + 10]);
    at += 12 + length + 4;
  }
  return steps;
}

TEST(Tensorboard, ChecksumsOfKnownBytes) {
  EXPECT_EQ(crc32c("123456789"), 0xE3069283U);            // the check value of CRC-32C
  EXPECT_EQ(crc32c(std::string(32, '\0')), 0x8A9136AAU);  // RFC 3720, B.4
  EXPECT_EQ(crc32c(std::string(32, '\xff')), 0x62A8AB43U);
}

TEST(Tensorboard, EventsAreThoseOfItsOwnWriter) {
  const std::string golden = bytes_of(std::string(FLANMOE_SOURCE_DIR) + "/tests/fixtures/tensorboard/events");
  ASSERT_FALSE(golden.empty());

  const std::string ours =
      opening_event(1.5e9) + scalar_event(1.5e9 + 1, 1, {{"loss", 5.25}, {"learning_rate", 0.01}}) +
      scalar_event(1.5e9 + 300, 300, {{"drop_fraction/encoder/layer_01", 0.125}, {"tokens_per_second", 123456.0}});

  EXPECT_EQ(ours, golden);
}

TEST(Tensorboard, ShowsLoadAsTimesTheFairShare) {
  double load = 0, dropped = 0;
  for (const Scalar& scalar : scalars_of(record(2))) {
    if (scalar.tag == "largest_load/encoder/layer_01") load = scalar.value;
    if (scalar.tag == "drop_fraction/encoder/layer_01") dropped = scalar.value;
  }
  EXPECT_EQ(load, 1.5);
  EXPECT_EQ(dropped, 0.125);
}

TEST(Tensorboard, RestartWritesTheStepsOfTheMetricsAnewAndOnce) {
  const TemporaryFolder folder;
  const std::string metrics = folder.file("metrics.jsonl"), events = folder.file("tensorboard");
  {
    MetricsFile file(metrics, 0);
    EventFile shown(events, metrics);
    for (const std::int64_t step : {1, 2, 3}) {
      file.append(record(step));
      shown.append(record(step));
    }
  }
  EXPECT_EQ(steps_in(bytes_of(only_file_in(events))), (std::vector<std::int64_t>{1, 2, 3}));

  MetricsFile file(metrics, 2);  // a checkpoint of step 2
  EventFile shown(events, metrics);
  shown.append(record(3));
  EXPECT_EQ(steps_in(bytes_of(only_file_in(events))), (std::vector<std::int64_t>{1, 2, 3}));
}

TEST(Tensorboard, TrainingGoesOnWithoutAFileThatCannotBeWritten) {
  const TemporaryFolder folder;
  write_bytes(folder.file("tensorboard"), {'x'});  // a file where the folder should be

  EventFile events(folder.file("tensorboard"), folder.file("metrics.jsonl"));
  EXPECT_NO_THROW(events.append(record(1)));
}

TEST(Tensorboard, TrainingGoesOnWithMetricsThatCannotBeRead) {
  const TemporaryFolder folder;
  const std::string metrics = folder.file("metrics.jsonl"), events = folder.file("tensorboard");
  std::string lines = to_json_line(record(1)) + "\n{\"step\": 2}\n";
  write_bytes(metrics, {lines.begin(), lines.end()});
  {
    EventFile shown(events, metrics);
    shown.append(record(3));
  }
  EXPECT_EQ(steps_in(bytes_of(only_file_in(events))), (std::vector<std::int64_t>{3}));
}

TEST(Metrics, ReadBackToTheSameRecords) {
  const TemporaryFolder folder;
  const std::string path = folder.file("metrics.jsonl");
  {
    MetricsFile file(path, 0);
    file.append(record(1));
    file.append(record(2));
  }
  std::vector<char> bytes = file_bytes(path);
  bytes.insert(bytes.end(), {'{', '"', 's'});  // being written
  write_bytes(path, bytes);

  const std::vector<StepRecord> records = read_metrics(path);
  ASSERT_EQ(records.size(), 2U);
  EXPECT_EQ(to_json_line(records[1]), to_json_line(record(2)));
  EXPECT_TRUE(read_metrics(folder.file("none")).empty());
  write_bytes(path, {'{', '}', '\n'});
  EXPECT_NE(error_of([&] { read_metrics(path); }).find("metrics.jsonl:1: expected the record of a step"),
            std::string::npos);
}

}  // namespace
}  // namespace flanmoe
