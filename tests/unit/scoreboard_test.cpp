// evaluation.json and its table carry the scores as they were measured.
#include "evaluate/scoreboard.hpp"

#include <gtest/gtest.h>

#include <algorithm>

namespace flanmoe {
namespace {

std::vector<ExampleOutcome> outcomes() {
  std::vector<ExampleOutcome> all;
  for (int i = 0; i < 8; ++i) {
    ExampleOutcome o;
    o.task = i < 4 ? "synonym" : "sums";
    o.category = i < 4 ? "words" : "numbers";
    o.variant = i < 4 ? "zero_shot" : "cot";
    o.held_out = i < 4;
    o.generated = true;
    o.exact_match = i % 4 == 0;
    o.generated_tokens = 5;
    o.unfinished = i == 3;
    o.trimmed = i == 2;
    o.choices = i < 4 ? 4 : 0;
    o.acc = i < 2;
    o.acc_norm = i < 3;
    o.target_nll = 1.5;
    o.target_tokens = 3;
    all.push_back(o);
  }
  return all;
}

Json evaluation() {
  Json j;
  put_scores(j, outcomes());
  return j;
}

TEST(Scoreboard, JsonHoldsTheMeasuredScoresAndNullForTheOthers) {
  const Json j = evaluation();
  const Json& sums = j.at("tasks").at(0);
  EXPECT_EQ(sums.at("task"), "sums");
  EXPECT_EQ(sums.at("exact_match"), 0.25);
  EXPECT_TRUE(sums.at("acc").is_null());
  EXPECT_TRUE(sums.at("acc_norm_stderr").is_null());
  EXPECT_TRUE(sums.at("chance").is_null());
  EXPECT_EQ(sums.at("nll_per_token"), 0.5);
  const Json& synonym = j.at("tasks").at(1);
  EXPECT_EQ(synonym.at("held_out"), true);
  EXPECT_EQ(synonym.at("n"), 4);
  EXPECT_EQ(synonym.at("acc"), 0.5);
  EXPECT_EQ(synonym.at("acc_stderr"), 0.25);
  EXPECT_EQ(synonym.at("acc_norm"), 0.75);
  EXPECT_EQ(synonym.at("chance"), 0.25);
  EXPECT_NEAR(synonym.at("normalized_score").get<double>(), 100.0 / 3, 1e-12);
  EXPECT_EQ(synonym.at("unfinished"), 1);
  EXPECT_EQ(synonym.at("trimmed_inputs"), 1);
  EXPECT_EQ(j.at("averages").at(0).at("set"), "held_in");
  EXPECT_EQ(j.at("averages").at(1).at("set"), "held_out");
}

TEST(Scoreboard, EveryScoreOfTheFileIsDefined) {
  const Json definitions = score_definitions();
  for (const char* name :
       {"exact_match", "acc", "acc_norm", "rouge_l", "score", "chance", "normalized_score", "nll_per_token"}) {
    EXPECT_TRUE(definitions.contains(name)) << name;
    EXPECT_TRUE(evaluation().at("tasks").at(0).contains(name)) << name;
  }
  EXPECT_NE(definitions.at("acc_norm").get<std::string>().find("UTF-8 bytes"), std::string::npos);
}

TEST(Scoreboard, TableShowsPercentagesAndMarksHeldOutTasks) {
  const auto lines = score_table(evaluation());
  ASSERT_EQ(lines.size(), 1U + 2 + 1 + 2 + 1);
  EXPECT_NE(lines[2].find("synonym *"), std::string::npos) << lines[2];
  EXPECT_NE(lines[2].find("50.0 ±25.0"), std::string::npos) << lines[2];
  EXPECT_NE(lines[2].find("75.0 ±21.7"), std::string::npos) << lines[2];
  EXPECT_EQ(lines[1].find("synonym"), std::string::npos);
  EXPECT_NE(lines.back().find("held out"), std::string::npos);
}

TEST(Files, BytesThatAreNoUtf8DoNotStopTheWriter) {
  Json j;
  j["output"] = std::string("a\xC3(b");
  EXPECT_EQ(json_text(j, -1), "{\"output\":\"a\uFFFD(b\"}");
}

}  // namespace
}  // namespace flanmoe
