// flanmoe selfcheck: what users run to see that their deck trains the same on every layout.
#include <gtest/gtest.h>

#include <filesystem>

#include "regression/program.hpp"

namespace flanmoe::regression {
namespace {

Ended selfcheck(int ranks, const Workplace& workplace, const Words& more) {
  Words words = smoke(write_text(workplace), workplace.path("run"), more);
  words.insert(words.begin(), "selfcheck");
  return run(ranks, words);
}

std::int64_t count(const std::string& text, const std::string& part) {
  std::int64_t found = 0;
  for (auto at = text.find(part); at != std::string::npos; at = text.find(part, at + 1)) ++found;
  return found;
}

TEST(Selfcheck, WithLeavesEveryLayoutHasTheSameBits) {
  const Workplace workplace;
  const Ended ended = selfcheck(4, workplace, {"--reduction.leaves=4", "--model.dropout=0.1"});
  EXPECT_EQ(ended.exit_code, 0) << ended.output;
  EXPECT_NE(ended.output.find("3 steps on 6 layouts of up to 4 ranks"), std::string::npos) << ended.output;
  EXPECT_EQ(count(ended.output, "the same bits"), 6) << ended.output;
  EXPECT_EQ(count(ended.output, "all layouts agree as the deck promises"), 1) << ended.output;
  for (const auto& entry : std::filesystem::directory_iterator(workplace.path(""))) {
    EXPECT_FALSE(entry.is_directory()) << entry.path() << " is left behind";
  }
}

TEST(Selfcheck, WithoutThemTheyAgreeToRounding) {
  const Workplace workplace;
  const Ended ended = selfcheck(3, workplace, {});
  EXPECT_EQ(ended.exit_code, 0) << ended.output;
  EXPECT_NE(ended.output.find("the same to "), std::string::npos) << ended.output;
}

TEST(Selfcheck, AFolderThatIsThereIsRefusedAndStays) {
  const Workplace workplace;
  const std::string folder = workplace.path("run.selfcheck");
  std::filesystem::create_directories(folder + "/mine");
  const Ended ended = selfcheck(2, workplace, {});
  EXPECT_EQ(ended.exit_code, 2) << ended.output;
  EXPECT_NE(ended.output.find(folder + " exists"), std::string::npos) << ended.output;
  EXPECT_TRUE(std::filesystem::exists(folder + "/mine"));
}

TEST(Selfcheck, AStageThatTrainsNothingIsRefused) {
  const Workplace workplace;
  const Ended ended = selfcheck(0, workplace, {"--run.stage=evaluate"});
  EXPECT_EQ(ended.exit_code, 2) << ended.output;
}

}  // namespace
}  // namespace flanmoe::regression
