// A model that was trained on the items of every kind of benchmark gets all of them right, through the whole path:
// shards, training, decoding and ranking, extraction, score, benchmark.
#include <gtest/gtest.h>

#include <array>
#include <fstream>

#include "base/error.hpp"
#include "base/hdf5.hpp"
#include "data/tokenizer.hpp"
#include "regression/program.hpp"
#include "tensor/philox.hpp"

namespace flanmoe::regression {
namespace {

constexpr int kItems = 9;  // of each kind
constexpr std::array kLetters = {"A", "B", "C", "D"};
constexpr std::array kWords = {"stone", "river", "window", "table", "garden", "letter", "winter", "mountain"};

std::int64_t draw(int bound, int item, std::uint32_t place) {
  return std::int64_t(RandomKey{.seed = 4}.below(std::uint64_t(bound), std::uint64_t(item), place));
}

/// One item as text; the tokens are made when it is written.
struct Item {
  const char* benchmark;
  const char* task;
  const char* variant;
  std::string input, target, answer;
  std::vector<std::string> choices;
};

std::vector<Item> items() {
  std::vector<Item> all;
  for (int i = 0; i < kItems; ++i) {
    const std::string letter = kLetters[std::size_t(draw(4, i, 0))], word = kWords[std::size_t(draw(8, i, 1))];
    const std::vector<std::string> letters(kLetters.begin(), kLetters.end());
    const std::int64_t a = draw(90, i, 2), b = draw(90, i, 3);
    const std::string verdict = draw(2, i, 4) == 0 ? "yes" : "no";
    all.push_back(
        {"mmlu", "astronomy", "few_shot", fmt::format("which letter is {} ?", 100 + i), letter, letter, letters});
    all.push_back({"bbh",
                   "date_understanding",
                   "cot_few_shot",
                   fmt::format("what is case {} ?", 200 + i),
                   fmt::format("it is the {}. So the answer is ({}).", word, letter),
                   fmt::format("({})", letter),
                   {}});
    all.push_back({"reasoning",
                   "gsm8k",
                   "cot_few_shot",
                   fmt::format("add for {} .", 300 + i),
                   fmt::format("{} + {} = {}. The answer is {}.", a, b, a + b, a + b),
                   std::to_string(a + b),
                   {}});
    all.push_back({"reasoning",
                   "strategyqa",
                   "cot_few_shot",
                   fmt::format("is it so {} ?", 400 + i),
                   fmt::format("it is the {}. So the answer is {}.", word, verdict),
                   verdict,
                   {}});
    all.push_back({"qa",
                   "arc_easy",
                   "zero_shot",
                   fmt::format("which thing is {} ?", 500 + i),
                   word,
                   word,
                   {"stone", "river", "window", "table", "garden", "letter", "winter", "mountain"}});
    all.push_back({"niv2",
                   "task001_tell",
                   "few_shot",
                   fmt::format("tell of {} .", 600 + i),
                   fmt::format("the {} is {} .", word, kWords[std::size_t(draw(8, i, 5))]),
                   "",
                   {}});
  }
  return all;
}

void write_items(const std::string& shard, const std::string& model) {
  std::vector<std::string> sentences;
  for (int copy = 0; copy < 60; ++copy) {
    for (const Item& item : items()) sentences.push_back(fmt::format("{} {} {}", item.input, item.target, copy));
  }
  std::size_t at = 0;
  const auto next = [&](std::string& sentence) {
    if (at == sentences.size()) return false;
    sentence = sentences[at++];
    return true;
  };
  train_tokenizer(next, {.vocabulary = 290}, model);
  const Tokenizer tokenizer(model);
  ShardWriter writer(shard, tokenizer.identity());
  for (const Item& item : items()) {
    writer.describe_task(item.task, published_task(item.benchmark, item.task).value());
    Example e;
    e.task = item.task;
    e.variant = item.variant;
    e.split = "train";
    e.input = tokenizer.encode(item.input);
    e.target = tokenizer.encode(item.target);
    e.answer = item.answer;
    for (std::size_t c = 0; c < item.choices.size(); ++c) {
      e.choices.push_back(tokenizer.encode(item.choices[c]));
      e.choice_bytes.push_back(std::int32_t(item.choices[c].size()));
      if (item.choices[c] == item.answer) e.gold = std::int32_t(c);
    }
    writer.add(e);
  }
  writer.finish();
}

TEST(Memorised, EveryBenchmarkIsRightOnItemsThatWereTrainedOn) {
  silence_hdf5();
  const Workplace workplace;
  const std::string shard = workplace.path("items.h5"), model = workplace.path("tokenizer.model");
  write_items(shard, model);
  const Ended ended = run(2, smoke(shard, workplace.path("run"),
                                   {"--run.stage=finetune",
                                    "--run.steps=400",
                                    "--checkpoint.every=0",
                                    "--parallel.expert=2",
                                    "--optimizer.name=adamw",
                                    "--optimizer.schedule=linear",
                                    "--optimizer.learning_rate=0.003",
                                    "--optimizer.warmup_steps=20",
                                    "--model.vocabulary=320",
                                    "--model.width=64",
                                    "--model.hidden=128",
                                    "--model.heads=4",
                                    "--model.init_scale=1",
                                    "--moe.capacity_factor=0",
                                    "--moe.capacity_factor_eval=0",
                                    "--batch.target_length=48",
                                    "--evaluate.every=400",
                                    "--evaluate.shards=" + shard,
                                    "--evaluate.split=train",
                                    "--data.tokenizer=" + model,
                                    "--evaluate.max_new_tokens=40"}));
  ASSERT_EQ(ended.exit_code, 0) << ended.output;
  std::ifstream file(workplace.path("run") + "/evaluations/step-00000400.json");
  const auto evaluation = nlohmann::json::parse(file);
  ASSERT_EQ(evaluation.at("tasks").size(), 6U);
  for (const auto& task : evaluation.at("tasks")) EXPECT_EQ(task.at("score"), 1.0) << task.dump(1);
  ASSERT_EQ(evaluation.at("benchmarks").size(), 5U);
  for (const auto& benchmark : evaluation.at("benchmarks")) EXPECT_NEAR(benchmark.at("normalized_score"), 100, 1e-9);
}

}  // namespace
}  // namespace flanmoe::regression
