// Scores of benchmarks and both normalised averages of a fixed set of made-up predictions, counted by hand.
#include "evaluate/benchmarks.hpp"

#include <fmt/format.h>
#include <gtest/gtest.h>

#include <cmath>

#include "evaluate/scoreboard.hpp"

namespace flanmoe {
namespace {

/// `right` of `n` predictions of a task are right, by generation or by ranking.
void add(std::vector<ExampleOutcome>& all, const char* benchmark, const char* task, const char* variant, int right,
         int n, bool ranked = false) {
  for (int i = 0; i < n; ++i) {
    ExampleOutcome o;
    o.task = task;
    o.variant = variant;
    o.info = published_task(benchmark, task).value();
    o.generated = true;
    o.exact_match = !ranked && i < right;
    o.choices = ranked ? 4 : 0;
    o.acc = ranked && i < right;
    all.push_back(o);
  }
}

std::vector<ExampleOutcome> predictions() {
  std::vector<ExampleOutcome> all;
  add(all, "mmlu", "astronomy", "few_shot", 6, 8, true);                 // STEM: 0.75
  add(all, "mmlu", "machine_learning", "few_shot", 1, 4, true);          // STEM: 0.25
  add(all, "mmlu", "virology", "few_shot", 1, 2, true);                  // other: 0.5
  add(all, "bbh", "snarks", "few_shot", 3, 4);                           // 0.75, chance 0.5: 50
  add(all, "bbh", "word_sorting", "few_shot", 1, 4);                     // 0.25, chance 0: 25
  add(all, "bbh", "logical_deduction_three_objects", "few_shot", 2, 3);  // 2/3, chance 1/3: 50
  add(all, "bbh", "logical_deduction_five_objects", "few_shot", 1, 5);   // 0.2, chance 0.2: 0
  add(all, "bbh", "logical_deduction_seven_objects", "few_shot", 4, 7);  // 4/7, chance 1/7: 50
  add(all, "reasoning", "gsm8k", "cot_few_shot", 1, 10);                 // 0.1
  add(all, "reasoning", "strategyqa", "cot_few_shot", 3, 10);            // 0.3, chance 0.5: -40
  add(all, "qa", "arc_easy", "zero_shot", 5, 8, true);                   // 0.625, chance by choices 0.25: 50
  return all;
}

const BenchmarkScore& score_of(const std::vector<BenchmarkScore>& all, const std::string& benchmark,
                               const std::string& variant) {
  for (const auto& score : all) {
    if (score.benchmark == benchmark && score.variant == variant) return score;
  }
  throw std::runtime_error(fmt::format("{} {} is missing", benchmark, variant));
}

TEST(Benchmarks, ScoresEqualHandCounts) {
  const auto scores = score_benchmarks(score_tasks(predictions()));
  ASSERT_EQ(scores.size(), 4U);
  const BenchmarkScore& mmlu = score_of(scores, "mmlu", "few_shot");
  EXPECT_EQ(mmlu.all.tasks, 3);
  EXPECT_EQ(mmlu.all.n, 14);
  EXPECT_DOUBLE_EQ(mmlu.all.score.value, 0.5);               // unweighted, not 8 / 14
  EXPECT_NEAR(mmlu.all.normalized_score, 100.0 / 3, 1e-12);  // (66.67 + 0 + 33.33) / 3
  // sqrt(0.1875/8 + 0.1875/4 + 0.25/2) / 3
  EXPECT_NEAR(mmlu.all.score.standard_error, std::sqrt(0.0234375 + 0.046875 + 0.125) / 3, 1e-15);
  ASSERT_EQ(mmlu.groups.size(), 2U);
  EXPECT_EQ(mmlu.groups[0].name, "STEM");
  EXPECT_DOUBLE_EQ(mmlu.groups[0].score.value, 0.5);
  EXPECT_EQ(mmlu.groups[0].tasks, 2);
  EXPECT_EQ(mmlu.groups[1].name, "other");
  EXPECT_DOUBLE_EQ(mmlu.groups[1].score.value, 0.5);
  EXPECT_EQ(mmlu.groups[1].n, 2);
}

TEST(Benchmarks, PartsAreAveragedToOneTaskFirst) {
  const auto scores = score_benchmarks(score_tasks(predictions()));
  const MeanOfTasks& bbh = score_of(scores, "bbh", "few_shot").all;
  EXPECT_EQ(bbh.tasks, 3);
  EXPECT_EQ(bbh.n, 23);
  const double deduction = (2.0 / 3 + 0.2 + 4.0 / 7) / 3;
  EXPECT_NEAR(bbh.score.value, (0.75 + 0.25 + deduction) / 3, 1e-15);
  EXPECT_NEAR(bbh.normalized_score, (50 + 25 + 100.0 / 3) / 3, 1e-12);
  EXPECT_NEAR(bbh.chance, (0.5 + 0 + (1.0 / 3 + 0.2 + 1.0 / 7) / 3) / 3, 1e-15);
}

TEST(Benchmarks, NormalizedAveragesAreThoseOfTheLiterature) {
  auto outcomes = predictions();
  auto averages = normalized_averages(score_benchmarks(score_tasks(outcomes)));
  ASSERT_EQ(averages.size(), 2U);
  EXPECT_EQ(averages[0].name, "flan_2022");
  EXPECT_FALSE(averages[0].normalized) << "four of six parts are missing";
  EXPECT_EQ(averages[0].parts.size(), 6U);
  EXPECT_EQ(averages[0].parts[1].variant, "");
  const NormalizedAverage& four = averages[1];
  EXPECT_EQ(four.name, "flan_moe");
  const double bbh = (50 + 25 + 100.0 / 3) / 3;
  EXPECT_NEAR(*four.normalized, (100.0 / 3 + bbh - 15 + 50) / 4, 1e-12);  // reasoning: (10 - 40) / 2
  const double bbh_raw = 100 * (0.75 + 0.25 + (2.0 / 3 + 0.2 + 4.0 / 7) / 3) / 3;
  EXPECT_NEAR(*four.raw, (50 + bbh_raw + 20 + 62.5) / 4, 1e-12);

  add(outcomes, "mmlu", "virology", "cot_few_shot", 1, 2);  // by generation: 0.5 -> 33.3
  add(outcomes, "mmlu", "virology", "cot", 0, 2);           // does not count beside the few-shot one
  add(outcomes, "bbh", "snarks", "cot", 4, 4);              // 100
  add(outcomes, "tydiqa", "english", "zero_shot", 1, 10);   // 10
  add(outcomes, "mgsm", "german", "cot_few_shot", 1, 5);    // 20
  averages = normalized_averages(score_benchmarks(score_tasks(outcomes)));
  EXPECT_NEAR(*averages[0].normalized, (100.0 / 3 + 100.0 / 3 + bbh + 100 + 10 + 20) / 6, 1e-12);
  EXPECT_NEAR(*averages[0].raw, (50 + 50 + bbh_raw + 100 + 10 + 20) / 6, 1e-12);
  EXPECT_EQ(averages[0].parts[1].variant, "cot_few_shot");
  EXPECT_EQ(averages[0].parts[3].variant, "cot");
}

TEST(Benchmarks, TheScoreThatCountsIsTheTasksOrWhatWasMeasured) {
  ExampleOutcome o;
  o.task = "t";
  o.variant = "zero_shot";
  o.info.score = ScoreRule::acc_norm;
  o.generated = true;
  o.exact_match = true;
  o.choices = 2;
  o.acc_norm = true;
  EXPECT_EQ(score_tasks({o})[0].score_rule, ScoreRule::acc_norm);
  EXPECT_EQ(score_tasks({o})[0].score->value, 1.0);
  EXPECT_EQ(score_tasks({o})[0].normalized_score, 100.0);
  o.info.score = ScoreRule::acc;
  EXPECT_EQ(score_tasks({o})[0].score->value, 0.0);
  o.info.score = ScoreRule::automatic;
  EXPECT_EQ(score_tasks({o})[0].score_rule, ScoreRule::acc);
  o.variant = "cot_few_shot";
  EXPECT_EQ(score_tasks({o})[0].score_rule, ScoreRule::exact_match);
  o.info.score = ScoreRule::acc;
  o.choices = 0;
  EXPECT_EQ(score_tasks({o})[0].score_rule, ScoreRule::exact_match);
  EXPECT_EQ(score_tasks({o})[0].score->value, 1.0);
  o.generated = false;
  EXPECT_FALSE(score_tasks({o})[0].score);
}

TEST(Benchmarks, RougeLIsAMeanWithItsError) {
  std::vector<ExampleOutcome> all;
  for (const double value : {0.2, 0.4, 0.9}) {
    ExampleOutcome o;
    o.task = "task001";
    o.variant = "few_shot";
    o.info = published_task("niv2", "task001").value();
    o.generated = true;
    o.rouge_l = value;
    all.push_back(o);
  }
  const auto tasks = score_tasks(all);
  EXPECT_NEAR(tasks[0].rouge_l->value, 0.5, 1e-15);
  EXPECT_NEAR(tasks[0].rouge_l->standard_error, std::sqrt((0.09 + 0.01 + 0.16) / 6), 1e-15);
  EXPECT_EQ(tasks[0].score->value, tasks[0].rouge_l->value);
  EXPECT_NEAR(score_benchmarks(tasks)[0].all.normalized_score, 50, 1e-12);
  EXPECT_EQ(make_mean({0.25}).standard_error, 0.0);
}

TEST(Benchmarks, JsonAndTableShowThem) {
  Json evaluation;
  put_scores(evaluation, predictions());
  EXPECT_EQ(evaluation.at("benchmarks").size(), 4U);
  const Json& bbh = evaluation.at("benchmarks").at(0);
  EXPECT_EQ(bbh.at("benchmark"), "bbh");
  EXPECT_EQ(bbh.at("tasks"), 3);
  EXPECT_TRUE(evaluation.at("normalized_averages").at(0).at("normalized").is_null());
  EXPECT_EQ(evaluation.at("benchmarks").at(1).at("groups").at(0).at("group"), "STEM");
  std::string table;
  for (const auto& line : score_table(evaluation)) table.append(line).append("\n");
  EXPECT_NE(table.find("mmlu                       few_shot         3     14   50.0 ±14.7    25.0       33.3"),
            std::string::npos)
      << table;
  EXPECT_NE(table.find("  STEM "), std::string::npos);
  EXPECT_NE(table.find("normalized average flan_2022: not measured: MMLU-CoT, BBH-CoT, TyDiQA-Direct, MGSM-CoT"),
            std::string::npos)
      << table;
  EXPECT_NE(table.find("normalized average flan_moe: 26.1 corrected for chance, 45.5 raw"), std::string::npos) << table;
}

}  // namespace
}  // namespace flanmoe
