// metrics.jsonl: digits, restarts, totals.
#include "train/metrics.hpp"

#include <gtest/gtest.h>

#include <cmath>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <sstream>

namespace flanmoe {
namespace {

class Metrics : public testing::Test {
 protected:
  void SetUp() override {
    path_ = testing::TempDir() + "/metrics_test.jsonl";
    std::filesystem::remove(path_);
  }
  void TearDown() override { std::filesystem::remove(path_); }
  std::string text() const {
    std::stringstream out;
    out << std::ifstream(path_).rdbuf();
    return out.str();
  }
  static StepRecord record(std::int64_t step) {
    StepRecord r;
    r.step = step;
    r.loss = 10.0 / double(step);
    r.accuracy = 0.01 * double(step);
    r.tokens = 100;
    r.step_seconds = 0.5;
    return r;
  }
  std::string path_;
};

TEST_F(Metrics, NumbersReadBackToTheSameBits) {
  StepRecord r = record(3);
  r.loss = 0.1 + 0.2;
  r.grad_norm = 1.0 / 3.0;
  r.moe.push_back({.layer = "encoder/layer_01",
                   .load_E = {0.1, 0.9},
                   .copies_per_token = 1.75,
                   .drop_fraction = 1.0 / 7.0,
                   .unrouted_fraction = 0.375,
                   .balance_loss = 2.0 / 7.0,
                   .z_loss = 1e-300,
                   .router_entropy = 0.5});

  const auto line = nlohmann::json::parse(to_json_line(r));

  EXPECT_EQ(line["step"], 3);
  EXPECT_EQ(line["loss"].get<double>(), 0.1 + 0.2);
  EXPECT_EQ(line["grad_norm"].get<double>(), 1.0 / 3.0);
  EXPECT_EQ(line["tokens_per_second"].get<double>(), 200.0);
  const auto& layer = line["moe"]["encoder/layer_01"];
  EXPECT_EQ(layer["load"].get<std::vector<double>>(), (std::vector<double>{0.1, 0.9}));
  EXPECT_EQ(layer["drop_fraction"].get<double>(), 1.0 / 7.0);
  EXPECT_EQ(layer["copies_per_token"], 1.75);
  EXPECT_EQ(layer["unrouted_fraction"], 0.375);
  EXPECT_EQ(layer["z_loss"].get<double>(), 1e-300);
}

TEST_F(Metrics, RestartCutsLaterStepsAndAnUnfinishedLine) {
  {
    MetricsFile file(path_, 0);
    for (int step = 1; step <= 4; ++step) file.append(record(step));
  }
  const std::string whole = text();
  std::ofstream(path_, std::ios::app) << R"({"step":5,"lo)";

  { MetricsFile file(path_, 4); }
  EXPECT_EQ(text(), whole);

  {
    MetricsFile file(path_, 2);
    file.append(record(3));
    file.append(record(4));
  }
  EXPECT_EQ(text(), whole);

  { MetricsFile file(path_, 0); }
  EXPECT_EQ(text(), "");
}

TEST_F(Metrics, TotalsCoverTheWholeFile) {
  MetricsFile file(path_, 0);
  for (int step = 1; step <= 20; ++step) file.append(record(step));

  const RunTotals totals = read_totals(path_);

  EXPECT_EQ(totals.tokens, 2000);
  EXPECT_EQ(totals.first_loss, 10.0);
  EXPECT_EQ(totals.final_loss, 0.5);
  EXPECT_DOUBLE_EQ(totals.mean_loss_last_tenth, (10.0 / 19 + 10.0 / 20) / 2);
  EXPECT_DOUBLE_EQ(totals.mean_accuracy_last_tenth, 0.195);
  EXPECT_DOUBLE_EQ(totals.seconds, 10.0);
}

TEST_F(Metrics, WhatIsNotANumberReadsBackAsSuch) {
  {
    MetricsFile file(path_, 0);
    file.append(record(1));
    StepRecord lost = record(2);
    lost.loss = lost.grad_norm = NAN;
    lost.moe.push_back({.layer = "encoder/layer_01", .load_E = {NAN, 1}, .balance_loss = INFINITY});
    file.append(lost);
  }
  std::ofstream(path_, std::ios::app) << R"({"step":3,"loss":1})"
                                      << "\n";  // of a dense model, long ago

  const std::vector<StepRecord> records = read_metrics(path_);

  ASSERT_EQ(records.size(), 3U);
  EXPECT_TRUE(std::isnan(records[1].loss));
  EXPECT_TRUE(std::isnan(records[1].grad_norm));
  EXPECT_TRUE(std::isnan(records[1].moe.at(0).load_E[0]));
  EXPECT_TRUE(std::isnan(records[1].moe.at(0).balance_loss));
  EXPECT_EQ(records[1].accuracy, 0.02);
  EXPECT_TRUE(records[2].moe.empty());
  EXPECT_EQ(read_totals(path_).final_loss, 1.0);
  MetricsFile(path_, 2).flush_to_disk();
  EXPECT_TRUE(std::isnan(read_totals(path_).final_loss));
}

}  // namespace
}  // namespace flanmoe
