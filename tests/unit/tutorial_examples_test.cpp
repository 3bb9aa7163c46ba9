#include <gtest/gtest.h>
#include <unistd.h>

#include <filesystem>
#include <set>
#include <sstream>

#include "data/tutorial/arithmetic.hpp"
#include "data/tutorial/examples.hpp"

namespace flanmoe::tutorial {
namespace {

namespace fs = std::filesystem;

std::int64_t result_of(std::int64_t a, const std::string& operation, std::int64_t b) {
  if (operation == "+") return a + b;
  if (operation == "-") return a - b;
  EXPECT_EQ(operation, "*");
  return a * b;
}

/// Every number of a text, in order.
std::vector<std::int64_t> numbers_in(const std::string& text) {
  std::vector<std::int64_t> numbers;
  for (std::size_t i = 0; i < text.size();) {
    if (text[i] < '0' || text[i] > '9') {
      ++i;
      continue;
    }
    std::size_t used = 0;
    numbers.push_back(std::stoll(text.substr(i), &used));
    i += used;
  }
  return numbers;
}

TEST(Arithmetic, RationalesAreRightStepByStepAndEndInTheAnswer) {
  Random random(5);
  for (int round = 0; round < 2000; ++round) {
    const WordProblem problem = two_step_problem(random);
    std::istringstream steps(problem.rationale);
    std::int64_t a = 0, b = 0, c = -1;
    std::string operation, equals, stop;
    int count = 0;
    std::multiset<std::int64_t> given;
    for (const auto number : numbers_in(problem.question)) given.insert(number);
    while (steps >> a >> operation >> b >> equals >> c >> stop) {
      ASSERT_EQ(equals, "=") << problem.rationale;
      ASSERT_EQ(stop, ".") << problem.rationale;
      ASSERT_EQ(result_of(a, operation, b), c) << problem.rationale;
      for (const auto operand : {a, b}) ASSERT_TRUE(given.contains(operand)) << operand << " in " << problem.question;
      given.insert(c);  // a later step may use the result
      ++count;
    }
    ASSERT_EQ(count, 2) << problem.rationale;
    ASSERT_EQ(c, problem.answer) << problem.question << " " << problem.rationale;
    ASSERT_GE(problem.answer, 0) << problem.question;
  }
}

TEST(Arithmetic, SumsAreRightAndNeverNegative) {
  Random random(6);
  for (int round = 0; round < 2000; ++round) {
    const Sum sum = one_step_sum(random);
    std::istringstream text(sum.expression);
    std::int64_t a = 0, b = 0;
    std::string operation;
    ASSERT_TRUE(text >> a >> operation >> b) << sum.expression;
    ASSERT_EQ(result_of(a, operation, b), sum.answer) << sum.expression;
    ASSERT_GE(sum.answer, 0) << sum.expression;
  }
}

/// Examples of the generated tasks, through a tokenizer trained on their own prompts.
class MadeExamples : public ::testing::Test {
 protected:
  static void SetUpTestSuite() {
    const Sources none;
    const Items problems = word_problem(none);
    numbers_ = std::make_unique<Items>(larger_number(none));
    model_ = fs::temp_directory_path() / ("flanmoe_examples_" + std::to_string(getpid()) + ".model");
    std::size_t at = 0;
    TokenizerTraining training;
    training.vocabulary = 400;
    train_tokenizer(
        [&](std::string& sentence) {
          if (at == 3000) return false;
          const Item& item = problems[at++];
          sentence = item.fields[0].second + " Answer: Question: The answer is one of";
          return true;
        },
        training, model_);
    tokenizer_ = std::make_unique<Tokenizer>(model_);
    fs::remove(model_);
    ExampleLimits limits;
    limits.train_examples = 1200;
    limits.test_examples = 50;
    limits.few_shot_tokens = 400;
    limits.zero_shot_tokens = 120;
    examples_ = make("word_problem", problems, limits);
    more_ = make("larger_number", *numbers_, limits);
  }
  static void TearDownTestSuite() {
    tokenizer_.reset();
    numbers_.reset();
  }

  static std::vector<Example> make(const std::string& task, const Items& items, const ExampleLimits& limits) {
    const std::string path = std::string(FLANMOE_SOURCE_DIR "/input/templates/") + task + ".txt";
    TaskSummary summary;
    auto examples =
        make_examples(parse_templates(read_whole_file(path), path, task), items, *tokenizer_, limits, summary);
    std::int64_t counted = 0;
    for (const auto& [variant, count] : summary.train) counted += count;
    for (const auto& [variant, count] : summary.test) counted += count;
    EXPECT_EQ(counted, std::int64_t(examples.size()));
    return examples;
  }

  static inline fs::path model_;
  static inline std::unique_ptr<Tokenizer> tokenizer_;
  static inline std::unique_ptr<Items> numbers_;
  static inline std::vector<Example> examples_, more_;
};

TEST_F(MadeExamples, HaveEveryVariantOnBothSides) {
  std::map<std::string, int> count;
  for (const auto& example : examples_) ++count[example.split + "/" + example.variant];

  EXPECT_EQ(count["train/zero_shot"], 360);
  EXPECT_EQ(count["train/few_shot"], 240);
  EXPECT_EQ(count["train/cot"], 360);
  EXPECT_EQ(count["train/cot_few_shot"], 240);
  for (const char* variant : {"zero_shot", "few_shot", "cot", "cot_few_shot"}) {
    EXPECT_EQ(count[std::string("test/") + variant], 50) << variant;
  }
}

TEST_F(MadeExamples, NoPromptComesTwiceAndNoTestQuestionIsTrained) {
  std::set<std::string> inputs;
  std::vector<std::string> tested;
  for (const auto& example : examples_) {
    const std::string text = tokenizer_->decode(example.input);
    EXPECT_TRUE(inputs.insert(text).second) << text;
    // The template "direct" is the bare question.
    if (example.split == "test" && example.template_name == "direct" && example.variant == "zero_shot") {
      tested.push_back(text);
    }
  }
  ASSERT_GE(tested.size(), 10U);
  for (const auto& example : examples_) {
    if (example.split != "train") continue;
    const std::string text = tokenizer_->decode(example.input);
    for (const auto& question : tested) EXPECT_EQ(text.find(question), std::string::npos) << text;
  }
}

TEST_F(MadeExamples, FewShotPromptsHoldTheQueryOnceAndTwoOrThreeExemplars) {
  int seen = 0;
  for (const auto& example : examples_) {
    if (example.variant != "few_shot" || example.template_name != "direct") continue;
    const std::string text = tokenizer_->decode(example.input);
    std::vector<std::string> questions;
    std::istringstream parts(text);
    for (std::string part; std::getline(parts, part, '#');) {
      questions.emplace_back(trim(std::string_view(part).substr(0, part.find(" Answer:"))));
    }
    ASSERT_GE(questions.size(), 3U) << text;
    ASSERT_LE(questions.size(), 4U) << text;
    EXPECT_EQ(std::set<std::string>(questions.begin(), questions.end()).size(), questions.size()) << text;
    EXPECT_TRUE(text.ends_with("Answer:")) << text;
    ++seen;
  }
  EXPECT_GT(seen, 30);
}

TEST_F(MadeExamples, ChainOfThoughtTargetsReasonAndThenAnswer) {
  for (const auto& example : examples_) {
    const std::string target = tokenizer_->decode(example.target);
    if (example.variant.starts_with("cot")) {
      EXPECT_TRUE(target.ends_with(" The answer is " + example.answer + ".")) << target;
      EXPECT_TRUE(example.choices.empty());
    } else {
      EXPECT_EQ(target, example.answer);
    }
  }
}

TEST_F(MadeExamples, TestExamplesCarryChoicesAndTrainingExamplesDoNot) {
  for (const auto& examples : {examples_, more_}) {
    for (const auto& example : examples) {
      if (example.split == "train" || example.variant.starts_with("cot")) {
        EXPECT_TRUE(example.choices.empty());
        EXPECT_EQ(example.gold, -1);
        continue;
      }
      ASSERT_GE(example.choices.size(), 2U);
      ASSERT_EQ(example.choice_bytes.size(), example.choices.size());
      ASSERT_GE(example.gold, 0);
      EXPECT_EQ(tokenizer_->decode(example.choices[std::size_t(example.gold)]), example.answer);
      EXPECT_EQ(example.choice_bytes[std::size_t(example.gold)], std::int32_t(example.answer.size()));
    }
  }
}

TEST_F(MadeExamples, NumbersAreComparedRightly) {
  for (const auto& example : more_) {
    if (example.variant != "zero_shot" || example.template_name != "which") continue;
    const auto numbers = numbers_in(tokenizer_->decode(example.input));
    ASSERT_EQ(numbers.size(), 2U);
    EXPECT_EQ(example.answer, std::to_string(std::max(numbers[0], numbers[1])));
  }
}

TEST_F(MadeExamples, AnItemAskedAgainIsAskedThroughAnotherTemplate) {
  const Items few(numbers_->begin(), numbers_->begin() + 40);
  ExampleLimits limits;
  limits.train_examples = 1000;
  limits.test_examples = 10;
  std::set<std::string> inputs;
  std::map<std::string, int> asked;
  for (const auto& example : make("larger_number", few, limits)) {
    if (example.split != "train" || example.variant != "zero_shot") continue;
    EXPECT_TRUE(inputs.insert(tokenizer_->decode(example.input)).second);
    ++asked[example.template_name];
  }
  EXPECT_EQ(inputs.size(), 120U);  // 30 items, 4 templates
  for (const auto& [name, count] : asked) EXPECT_EQ(count, 30) << name;
}

TEST_F(MadeExamples, ExamplesOverTheLimitsAreLeftOutAndCounted) {
  const std::string path = FLANMOE_SOURCE_DIR "/input/templates/word_problem.txt";
  ExampleLimits limits;
  limits.train_examples = 400;
  limits.test_examples = 20;
  limits.zero_shot_tokens = 60;
  limits.few_shot_tokens = 150;
  TaskSummary summary;
  const auto examples = make_examples(parse_templates(read_whole_file(path), path, "word_problem"),
                                      word_problem(Sources{}), *tokenizer_, limits, summary);

  EXPECT_GT(summary.too_long, 0);
  EXPECT_EQ(summary.too_long + std::int64_t(examples.size()), 400 + 4 * 20);
  for (const auto& example : examples) {
    const bool few_shot = example.variant.ends_with("few_shot");
    EXPECT_LE(example.input.size(), few_shot ? limits.few_shot_tokens : limits.zero_shot_tokens);
  }
}

TEST(TaskSummaries, SurviveTheManifest) {
  TaskSummary summary;
  summary.task = "plural";
  summary.category = "grammar";
  summary.held_out = true;
  summary.train = {{"zero_shot", 3}, {"few_shot", 2}};
  summary.test = {{"zero_shot", 1}};
  summary.items = 9;
  summary.mean_input_tokens = 20.5;

  const TaskSummary same = summary_from_json(to_json(summary));

  EXPECT_EQ(same.task, "plural");
  EXPECT_TRUE(same.held_out);
  EXPECT_FALSE(same.finetune);
  EXPECT_EQ(same.train, summary.train);
  EXPECT_EQ(same.test, summary.test);
  EXPECT_EQ(same.items, 9);
  EXPECT_EQ(same.mean_input_tokens, 20.5);
}

}  // namespace
}  // namespace flanmoe::tutorial
