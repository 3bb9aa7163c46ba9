// What a study of checkpoints reads and says.
#include "train/checkpoint_study.hpp"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>

#include "temporary_folder.hpp"
#include "train/metrics.hpp"
#include "train/run_folder.hpp"

namespace flanmoe {
namespace {

using testing::HasSubstr;

class CheckpointStudy : public testing::Test {
 protected:
  /// A run whose steps took so long.
  SavingResult result(const std::string& way, const std::vector<double>& seconds, const std::string& checkpoints) {
    MetricsFile metrics(dir_ + "/metrics.jsonl", 0);
    for (std::size_t i = 0; i < seconds.size(); ++i) {
      StepRecord record;
      record.step = std::int64_t(i) + 1;
      record.step_seconds = seconds[i];
      metrics.append(record);
    }
    write_file(dir_ + "/summary.json", R"({"last_session": {"checkpoints": )" + checkpoints + "}}");
    return read_saving_result(dir_, way).value();
  }
  TemporaryFolder folder_;
  const std::string dir_ = folder_.path().string();
};

TEST_F(CheckpointStudy, ASaveCostsItsStallAndWhatStepsBesideItAreSlower) {
  EXPECT_FALSE(read_saving_result(dir_, "none").has_value());
  const SavingResult none = result("none", {9, 1, 1, 1, 1}, R"({"count": 0})");
  const SavingResult behind = result("behind", {9, 1, 1.5, 1.5, 1}, R"({"count": 2, "bytes": 6e9, "seconds": 4,
                                     "stall_seconds": 0.5, "longest_stall_seconds": 0.375})");
  EXPECT_EQ(none.step_seconds, 1);
  EXPECT_EQ(behind.step_seconds, 1.25);
  EXPECT_EQ(behind.gigabytes, 3);
  EXPECT_EQ(behind.stall_seconds, 0.25);
  EXPECT_EQ(behind.longest_stall_seconds, 0.375);
  EXPECT_EQ(cost_of_a_save(none, none), 0);
  EXPECT_EQ(cost_of_a_save(none, behind), 0.25 + 0.25 * 4 / 2);
  EXPECT_THAT(saving_csv({none, behind}), HasSubstr("\nbehind,1.25,2,3,2,1.5,0.25,0.375,0.75\n"));
  EXPECT_THAT(saving_table({none, behind}), HasSubstr("0.750\n"));
}

}  // namespace
}  // namespace flanmoe
