// Answers that are drawn by lot score chance, within 3 standard errors, through extraction and scores: every kind of
// benchmark, as generated text.
#include <fmt/format.h>
#include <gtest/gtest.h>

#include <cmath>
#include <filesystem>

#include "data/formats/formats.hpp"
#include "evaluate/answer.hpp"
#include "evaluate/benchmarks.hpp"
#include "real_data.hpp"
#include "tensor/philox.hpp"

namespace flanmoe {
namespace {

/// Guesses texts for questions of one task; every guess is one of the options, each as likely.
class Guesser {
 public:
  Guesser(const char* benchmark, const std::string& task, bool chain_of_thought)
      : info_(published_task(benchmark, task).value()), task_(task), chain_of_thought_(chain_of_thought) {}

  void guess(const std::vector<std::string>& options, const std::string& gold) {
    const RandomKey key{.seed = 11};
    const std::string& drawn = options[std::size_t(key.below(options.size(), outcomes_.size(), 0))];
    // A number that leads nowhere comes first, to be passed over.
    const std::string text = chain_of_thought_ ? fmt::format("There are 12 (E). So the answer is {}.", drawn) : drawn;
    const AnswerKind kind = kind_of_answer(info_.extraction, gold);
    ExampleOutcome outcome;
    outcome.task = task_;
    outcome.info = info_;
    outcome.variant = chain_of_thought_ ? "cot_few_shot" : "few_shot";
    outcome.generated = true;
    outcome.exact_match = answers_match(extract_answer(text, kind, chain_of_thought_), gold, kind);
    outcomes_.push_back(outcome);
  }

  /// The task's score is its chance.
  void expect_chance() const {
    const auto scores = score_benchmarks(score_tasks(outcomes_));
    ASSERT_EQ(scores.size(), 1U);
    const MeanOfTasks& all = scores[0].all;
    const double p = info_.chance, error = std::sqrt(p * (1 - p) / double(outcomes_.size()));
    EXPECT_EQ(all.n, std::int64_t(outcomes_.size()));
    EXPECT_NEAR(all.score.value, p, 3 * error) << task_;
    EXPECT_NEAR(all.normalized_score, 0, 3 * 100 * error / (1 - p)) << task_;
    EXPECT_TRUE(p == 0 || all.score.value > 0) << task_;
  }

 private:
  TaskInfo info_;
  std::string task_;
  bool chain_of_thought_;
  std::vector<ExampleOutcome> outcomes_;
};

TEST(Chance, IsWhatGuessesScoreInEveryKindOfBenchmark) {
  struct Kind {
    const char *benchmark, *task;
    std::vector<std::string> options;
  };
  const std::vector<Kind> kinds = {
      {"mmlu", "astronomy", {"(A)", "(B)", "(C)", "(D)"}},
      {"bbh", "snarks", {"(A)", "(B)"}},
      {"bbh", "logical_deduction_three_objects", {"(A)", "(B)", "(C)"}},
      {"bbh", "logical_deduction_seven_objects", {"(A)", "(B)", "(C)", "(D)", "(E)", "(F)", "(G)"}},
      {"bbh", "boolean_expressions", {"True", "False"}},
      {"reasoning", "strategyqa", {"yes", "no"}},
      {"qa", "boolq", {"yes", "no"}},
  };
  constexpr int kQuestions = 1000;
  for (const Kind& kind : kinds) {
    for (const bool chain_of_thought : {false, true}) {
      Guesser guesser(kind.benchmark, kind.task, chain_of_thought);
      for (int i = 0; i < kQuestions; ++i) {
        const RandomKey key{.seed = 12};
        guesser.guess(kind.options, kind.options[std::size_t(key.below(kind.options.size(), std::uint64_t(i), 0))]);
      }
      guesser.expect_chance();
    }
  }
  // Where answers are free, nothing is right by chance.
  std::vector<std::string> numbers;
  for (int i = 0; i < 1000; ++i) numbers.push_back(std::to_string(i));
  for (const char* task : {"gsm8k", "svamp", "asdiv"}) {
    Guesser guesser("reasoning", task, true);
    for (int i = 0; i < kQuestions; ++i) guesser.guess(numbers, std::to_string(1000 + i));
    guesser.expect_chance();
  }
}

TEST(ReleasedFiles, GuessesAmongTheirOptionsScoreThePublishedChance) {
  FLANMOE_NEED_DATA("bbh/bbh");
  int files = 0;
  for (const auto& entry : std::filesystem::directory_iterator(real_data() + "/bbh/bbh")) {
    const std::string task = entry.path().stem().string();
    formats::Input input = formats::Input::file(entry.path().string());
    formats::BadRecords bad;
    const auto records = formats::read_all(formats::find_format("bbh", "test"), input, bad).records;
    Guesser guesser("bbh", task, true);
    for (const formats::Record& record : records) {
      std::vector<std::string> options;
      for (std::size_t c = 0; c < record.choices.size(); ++c) {
        options.push_back(record.labels[c].empty() ? record.choices[c] : record.labels[c]);
      }
      if (options.empty()) options = {"nothing of the kind"};
      guesser.guess(options, record.answers[0]);
    }
    guesser.expect_chance();
    ++files;
  }
  EXPECT_GT(files, 0);
}

}  // namespace
}  // namespace flanmoe
