// A model that was trained on 50 invented items of each benchmark, in the format of its release, gets all of them
// right, through the whole path: released formats, the plan of the benchmarks and its prompts, shards, training,
// decoding and ranking, extraction, scores. No item is from a benchmark: this tests the path, not a model's knowledge.
#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <fstream>
#include <map>

#include "base/hdf5.hpp"
#include "data/flan/convert.hpp"
#include "regression/program.hpp"
#include "regression/released.hpp"

namespace flanmoe::regression {
namespace {

/// Runs the plan of the benchmarks as it is in input/ on the made-up files. Prompts are cut, so that a model this small
/// can read them in a short time: that leaves few exemplars, or none.
flan::ConvertOptions make_shards(const Workplace& workplace) {
  const std::string input = std::string(FLANMOE_SOURCE_DIR) + "/input";
  const ReleasedFiles files(workplace.path("data"));
  // The tokenizer's text: benchmarks are no training text, so it is written beside them.
  std::ofstream text(workplace.path("data") + "/words.txt");
  for (int copy = 0; copy < 40; ++copy) {
    for (int i = 0; i < kItems; ++i) {
      const MadeUp m = MadeUp::of(i);
      text << fmt::format(
          "Which one is {0}? A. stone B. river C. window D. garden Answer: B\n\nQ: How many has {0}? A: It has {1} + "
          "{2} = "
          "{3}. The answer is {3}.\n\nQ: Yes or no: Is {0} so? It is known. So the answer is yes. no\n\n"
          "There is {0}. How many are there? Here is {0}. How many apples? Easy, Hard, (A) (B) (C) (D) Let's think "
          "step by step. "
          "{4}\n\nTell of it. {0} the river is old and the stone is new OPTIONS: - Options: A word. {5}\n\n",
          m.name, m.a, m.b, m.a + m.b, m.a * 10, copy);
    }
  }
  text.close();
  flan::ConvertOptions options;
  options.data = workplace.path("data");
  options.output = workplace.path("shards");
  options.templates = input + "/templates";
  options.vocabulary = 400;
  std::ofstream(workplace.path("text.ini")) << "[text]\nformat = text\nfiles = words.txt\n";
  options.plan = workplace.path("text.ini");
  flan::convert(options);  // trains the tokenizer
  options.vocabulary = 0;
  options.plan = input + "/shards/benchmarks.ini";
  options.threads = 2;
  const auto make = [&](const std::vector<std::string>& sections, std::int64_t tokens) {
    options.only = sections;
    options.limits.input_tokens = tokens;
    options.limits.few_shot_tokens = tokens - 1;
    flan::convert(options);
  };
  make({"mmlu*", "bbh"}, 60);
  make({"gsm8k", "svamp", "asdiv", "strategyqa", "arc_*", "boolq", "niv2"}, 40);
  return options;
}

constexpr int kRounds = 4;

std::vector<std::string> overrides_of_training(const std::string& data) {
  return {"--run.stage=finetune",
          "--run.steps=1200",
          "--data.weights=bbh_*=1.5 mmlu_*=1.5 gsm8k=2 boolq=2 strategyqa=2",
          "--checkpoint.every=0",
          "--checkpoint.keep=1",
          "--parallel.expert=2",
          "--optimizer.name=adamw",
          "--optimizer.schedule=linear",
          "--optimizer.learning_rate=0.003",
          "--optimizer.final_fraction=0",
          "--optimizer.warmup_steps=20",
          "--model.vocabulary=400",
          "--model.width=64",
          "--model.hidden=128",
          "--model.heads=4",
          "--model.init_scale=1",
          "--moe.capacity_factor=0",
          "--moe.capacity_factor_eval=0",
          "--batch.rows=16",
          "--batch.input_length=120",
          "--batch.target_length=60",
          "--data.split=test",
          "--data.tokenizer=" + data + "/tokenizer.model"};
}

bool all_right(const nlohmann::json& evaluation) {
  return std::all_of(evaluation.at("tasks").begin(), evaluation.at("tasks").end(), [](const nlohmann::json& task) {
    return task.at("score") == 1.0 && task.at("exact_match") == 1.0;
  });
}

TEST(Memorised, EveryBenchmarkIsRightOnInventedItemsThatWereTrainedOn) {
  silence_hdf5();
  const Workplace workplace;
  const auto made = make_shards(workplace);
  std::string shards;
  for (const char* section : {"mmlu", "mmlu_cot", "bbh", "gsm8k", "svamp", "asdiv", "strategyqa", "arc_easy",
                              "arc_challenge", "boolq", "niv2"}) {
    shards += fmt::format("{}{}/{}/*.h5", shards.empty() ? "" : " ", made.output, section);
  }
  // Greedy decoding of 650 answers allows no slip, and rounding is another on every processor: who has not learnt all
  // in one training goes through another.
  nlohmann::json evaluation;
  std::string run_dir;
  for (int round = 0; round < kRounds; ++round) {
    std::vector<std::string> overrides = overrides_of_training(made.output);
    if (round > 0) overrides.push_back("--run.init_from=" + run_dir);
    run_dir = workplace.path(fmt::format("run_{}", round));
    const Ended ended = run(2, smoke(shards, run_dir, overrides));
    ASSERT_EQ(ended.exit_code, 0) << ended.output;
    const Ended measured = run(2, {run_dir + "/deck.resolved", "--run.stage=evaluate", "--run.init_from=" + run_dir,
                                   "--run.dir=" + run_dir + "/benchmarks", "--evaluate.shards=" + shards,
                                   "--evaluate.batch_rows=64", "--evaluate.max_new_tokens=40"});
    ASSERT_EQ(measured.exit_code, 0) << measured.output;
    std::ifstream file(run_dir + "/benchmarks/evaluation.json");
    evaluation = nlohmann::json::parse(file);
    if (all_right(evaluation)) break;
  }
  std::map<std::string, std::string> seen;
  for (const auto& task : evaluation.at("tasks")) {
    const std::string name = task.at("task").get<std::string>() + " " + task.at("variant").get<std::string>();
    seen[name] = task.at("score_rule").get<std::string>();
    EXPECT_EQ(task.at("n"), kItems) << name;
    EXPECT_EQ(task.at("score"), 1.0) << task.dump(1);
    EXPECT_EQ(task.at("exact_match"), 1.0) << task.dump(1);  // by generation too, where ranking counts
  }
  const std::map<std::string, std::string> expected = {{"mmlu_astronomy few_shot", "acc"},
                                                       {"mmlu_astronomy cot_few_shot", "exact_match"},
                                                       {"bbh_date_understanding few_shot", "exact_match"},
                                                       {"bbh_date_understanding cot_few_shot", "exact_match"},
                                                       {"gsm8k cot_few_shot", "exact_match"},
                                                       {"svamp cot_few_shot", "exact_match"},
                                                       {"asdiv cot_few_shot", "exact_match"},
                                                       {"strategyqa cot_few_shot", "exact_match"},
                                                       {"arc_easy zero_shot", "acc"},
                                                       {"arc_challenge zero_shot", "acc"},
                                                       {"boolq zero_shot", "acc"},
                                                       {"niv2_task001_tell zero_shot", "rouge_l"},
                                                       {"niv2_task001_tell few_shot", "rouge_l"}};
  EXPECT_EQ(seen, expected);
  ASSERT_EQ(evaluation.at("benchmarks").size(), 8U);  // in each variant
  for (const auto& benchmark : evaluation.at("benchmarks")) EXPECT_NEAR(benchmark.at("normalized_score"), 100, 1e-9);
}

}  // namespace
}  // namespace flanmoe::regression
