// flanmoe-bench measures all it has, on the host and on the emulated GPU. What it measures here means nothing.
#include <gtest/gtest.h>
#include <sys/wait.h>

#include <cmath>
#include <cstdlib>
#include <fstream>
#include <map>
#include <set>

#include "base/error.hpp"
#include "regression/program.hpp"

namespace flanmoe::regression {
namespace {

nlohmann::json measure(const std::string& program, const std::string& device) {
  const Workplace workplace;
  const std::string json = workplace.path("bench.json"), log = workplace.path("log");
  const int status = std::system(
      fmt::format("OMP_NUM_THREADS=1 {} --device {} --quick --json {} >{} 2>&1", program, device, json, log).c_str());
  std::ifstream text(log);
  EXPECT_EQ(WEXITSTATUS(status), 0) << std::string(std::istreambuf_iterator<char>(text), {});
  std::ifstream file(json);
  return nlohmann::json::parse(file, nullptr, false);
}

void expect_all_measured(const nlohmann::json& report, const std::string& device) {
  ASSERT_TRUE(report.is_object());
  EXPECT_EQ(report.at("device"), device);
  EXPECT_EQ(report.at("quick"), true);
  for (const auto& [key, value] : report.at("roof").items()) EXPECT_GT(value.get<double>(), 0) << key;
  EXPECT_EQ(report.at("roof").contains("tf32_flops_per_second"), device == "cuda");
  std::set<std::string> names;
  for (const char* section : {"operations", "steps"}) {
    for (const auto& m : report.at(section)) {
      names.insert(m.at("name"));
      const double share = m.at("share_of_roof");
      EXPECT_TRUE(std::isfinite(share) && share > 0) << m.dump();
    }
  }
  for (const char* name : {"product", "attention backward", "cross-entropy with gradients", "expert FFN forward",
                           "norm backward", "router slots", "gather to experts", "adafactor", "adamw, 256 small ones",
                           "working weights, rounded at random"}) {
    EXPECT_TRUE(names.contains(name)) << name;
  }
  // Both ways of summing, in both precisions, where there are two ways.
  EXPECT_EQ(report.at("leaves").size(), device == "cpu" ? 4U : 0U);
  // Steps with real routing and with forced balance come in pairs.
  std::map<std::string, std::map<bool, int>> sparse_steps;
  for (const auto& m : report.at("steps")) {
    EXPECT_GT(m.at("tokens_per_second").get<double>(), 0);
    if (m.at("name").get<std::string>().find("MoE") != std::string::npos) {
      ++sparse_steps[m.at("precision")][m.at("forced_balance")];
    }
  }
  ASSERT_EQ(sparse_steps.size(), 2U);
  for (auto& [precision, count] : sparse_steps) {
    EXPECT_EQ(count[true], 1) << precision;
    EXPECT_EQ(count[false], 1) << precision;
  }
}

TEST(Bench, MeasuresTheHost) { expect_all_measured(measure(FLANMOE_BENCH, "cpu"), "cpu"); }

TEST(Bench, MeasuresAGpu) { expect_all_measured(measure(FLANMOE_BENCH_EMULATED, "cuda"), "cuda"); }

}  // namespace
}  // namespace flanmoe::regression
