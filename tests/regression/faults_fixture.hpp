// Runs to which something happens, and one that is left alone.
#pragma once

#include <gtest/gtest.h>

#include <chrono>
#include <fstream>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "base/hdf5.hpp"
#include "regression/program.hpp"

namespace flanmoe::regression {

namespace fs = std::filesystem;

constexpr int kSteps = 12;

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
  /// The folder of a run that is at its end, as if it had been killed just before it said so.
  static void copy_undisturbed(const std::string& name) {
    fs::copy(dir("undisturbed"), dir(name), fs::copy_options::recursive);
    fs::remove(dir(name) + "/summary.json");
  }
  static void wait_for_steps(Program& program, const std::string& name, std::int64_t steps) {
    while (count_lines(dir(name) + "/metrics.jsonl") < steps && program.running()) {
      std::this_thread::sleep_for(std::chrono::microseconds(500));
    }
  }
  static std::vector<nlohmann::json> events_of(const std::string& name, const std::string& kind) {
    std::vector<nlohmann::json> events;
    std::ifstream in(dir(name) + "/events.jsonl");
    for (std::string line; std::getline(in, line);) {
      const auto event = nlohmann::json::parse(line, nullptr, false);
      if (event.is_object() && event["event"] == kind) events.push_back(event);
    }
    return events;
  }
  static bool says(const Ended& ended, const std::string& part) { return ended.output.find(part) != std::string::npos; }

  static inline std::unique_ptr<Workplace> workplace_;
  static inline std::string shard_;
};

}  // namespace flanmoe::regression
