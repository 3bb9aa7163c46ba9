// The report of a run folder's evaluations equals the made-up evaluations it was given.
#include "evaluate/evaluation_report.hpp"

#include <fmt/format.h>
#include <gtest/gtest.h>

#include <boost/property_tree/ptree.hpp>
#include <boost/property_tree/xml_parser.hpp>
#include <filesystem>
#include <sstream>

#include "data_fixture.hpp"
#include "evaluate/scoreboard.hpp"

namespace flanmoe {
namespace {

void add(std::vector<ExampleOutcome>& all, const char* benchmark, const char* task, const char* variant, int right,
         int n) {
  for (int i = 0; i < n; ++i) {
    ExampleOutcome o;
    o.task = task;
    o.variant = variant;
    if (*benchmark != '\0') o.info = published_task(benchmark, task).value();
    o.generated = true;
    o.exact_match = i < right;
    o.target_tokens = 1;
    all.push_back(o);
  }
}

Json evaluation(std::int64_t step, int right, bool benchmarks) {
  std::vector<ExampleOutcome> outcomes;
  add(outcomes, "", "plain & <simple>", "zero_shot", right, 8);
  if (benchmarks) {
    add(outcomes, "mmlu", "astronomy", "few_shot", right, 8);
    add(outcomes, "mmlu", "virology", "few_shot", right / 2, 4);
    add(outcomes, "bbh", "snarks", "cot_few_shot", 3, 4);
  }
  Json j;
  j["step"] = step;
  put_scores(j, outcomes);
  return j;
}

void publish(const std::string& path, const Json& json) { publish_text_file(path, json_text(json, 2)); }

int count(const std::string& text, const std::string& part) {
  int found = 0;
  for (std::size_t at = 0; (at = text.find(part, at)) != std::string::npos; at += part.size()) ++found;
  return found;
}

TEST(EvaluationReport, GroupsBenchmarksBeforeTheirTasksBeforeOthers) {
  const auto groups = bar_groups(evaluation(5, 6, true));
  ASSERT_EQ(groups.size(), 4U);
  EXPECT_EQ(groups[0].title, "benchmarks");
  ASSERT_EQ(groups[0].bars.size(), 4U);
  EXPECT_EQ(groups[0].bars[0].name, "bbh, cot_few_shot");
  EXPECT_EQ(groups[0].bars[1].name, "mmlu, few_shot");
  EXPECT_EQ(*groups[0].bars[1].score, 75.0);
  EXPECT_EQ(*groups[0].bars[1].chance, 25.0);
  EXPECT_EQ(groups[0].bars[2].name, "mmlu, few_shot: STEM");
  EXPECT_EQ(groups[1].title, "mmlu, few_shot");
  EXPECT_EQ(groups[1].bars.size(), 2U);
  EXPECT_EQ(groups[2].title, "bbh, cot_few_shot");
  EXPECT_EQ(groups[3].title, "held-in tasks, zero_shot");
  EXPECT_FALSE(groups[3].bars[0].chance);
}

TEST(EvaluationReport, CurvesHoldTheScoresOfEveryStep) {
  const auto curves = score_curves({evaluation(10, 2, true), evaluation(20, 6, true)});
  ASSERT_EQ(curves.size(), 2U);
  EXPECT_EQ(curves[1].name, "mmlu, few_shot");
  EXPECT_EQ(curves[1].step, (std::vector<double>{10, 20}));
  EXPECT_EQ(curves[1].score, (std::vector<double>{25, 75}));
  const auto plain = score_curves({evaluation(10, 2, false)});
  ASSERT_EQ(plain.size(), 1U);
  EXPECT_EQ(plain[0].name, "held-in tasks, zero_shot (exact_match)");
  EXPECT_EQ(plain[0].score[0], 25.0);
}

TEST(EvaluationReport, FolderGivesTablesAndAPicture) {
  const TemporaryFolder folder;
  EXPECT_FALSE(has_evaluation(folder.path()));
  std::filesystem::create_directories(folder.path() / "evaluations");
  EXPECT_FALSE(has_evaluation(folder.path()));
  publish(folder.file("evaluations/step-00000020.json"), evaluation(20, 6, true));
  publish(folder.file("evaluations/step-00000010.json"), evaluation(10, 2, true));
  publish_text_file(folder.file("evaluations/step-00000010.predictions.jsonl"), "");
  publish(folder.file("evaluation.json"), evaluation(30, 8, true));
  EXPECT_TRUE(has_evaluation(folder.path()));
  const EvaluationReport report = read_evaluation_report(folder.path());
  ASSERT_EQ(report.over_steps.size(), 2U);
  EXPECT_EQ(report.over_steps[0].at("step"), 10);
  std::string table;
  for (const auto& line : evaluation_report_table(report)) table.append(line).append("\n");
  EXPECT_NE(table.find("      10  mmlu, few_shot                                 25.0"), std::string::npos) << table;
  EXPECT_EQ(count(table, "mmlu, few_shot  "), 2) << table;

  const std::string svg = evaluation_report_svg(report);
  std::istringstream stream(svg);
  boost::property_tree::ptree tree;
  EXPECT_NO_THROW(boost::property_tree::read_xml(stream, tree));
  // A bar for 4 benchmarks and groups and 4 tasks, a mark for 2 curves at 2 steps, the paper.
  EXPECT_EQ(count(svg, "<rect"), 8 + 4 + 1) << svg;
  EXPECT_EQ(count(svg, "<polyline"), 2);
  EXPECT_NE(svg.find("plain &amp; &lt;simple&gt;"), std::string::npos);
  EXPECT_NE(svg.find("100.0 ±0.0"), std::string::npos);
}

TEST(EvaluationReport, NamesTheFileThatIsDamaged) {
  const TemporaryFolder folder;
  EXPECT_NE(error_of([&] { read_evaluation_report(folder.path()); }).find("holds neither"), std::string::npos);
  publish_text_file(folder.file("evaluation.json"), "{\"step\": 1}");
  EXPECT_NE(error_of([&] { read_evaluation_report(folder.path()); }).find("evaluation.json: \"tasks\" is missing"),
            std::string::npos);
}

}  // namespace
}  // namespace flanmoe
