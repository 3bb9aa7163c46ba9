// Prompts of the FLAN variants: options, templates, exemplars, limits; and evaluation prompts as published.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <set>

#include "data/flan/evaluation.hpp"
#include "data/flan/held_out.hpp"
#include "data/flan/prompts.hpp"
#include "data_fixture.hpp"
#include "flan_fixture.hpp"

namespace flanmoe::flan {
namespace {

using formats::Record;
using testing::ElementsAre;
using testing::HasSubstr;
using testing::IsEmpty;
using testing::Not;
using testing::SizeIs;
using testing::StartsWith;

Record choice_record(const std::string& question, std::int32_t gold = 1) {
  Record record;
  record.key = question;
  record.question = record.question_as_written = question;
  record.choices = {"red", "green", "blue"};
  record.labels.resize(3);
  record.gold = gold;
  record.answers = {record.choices[std::size_t(gold)]};
  record.rationale = "Reason of " + question;
  return record;
}

TEST(Options, MarkersHeadingsAndEnds) {
  OptionStyle style;
  EXPECT_EQ(option_list(style, {"a", "b"}), "\nOPTIONS:\n- a\n- b");
  EXPECT_FALSE(style.names_choices());
  style = {"", "\n", OptionStyle::Marker::letter, "(", ")", ";"};
  EXPECT_EQ(option_list(style, {"a", "b"}), "\n(A) a;\n(B) b;");
  EXPECT_TRUE(style.names_choices());
  style = {"Choose:", " ", OptionStyle::Marker::roman, "", ".", ""};
  EXPECT_EQ(option_list(style, {"a", "b", "c", "d"}), "\nChoose: i. a ii. b iii. c iv. d");
  EXPECT_EQ(option_list(style, {}), "");
  style.marker = OptionStyle::Marker::letter;
  EXPECT_EQ(marker_of(style, 25), "Z.");
  EXPECT_EQ(marker_of(style, 26), "AA.");
  EXPECT_EQ(marker_of(style, 27), "AB.");
  std::set<std::string> drawn;
  Random random(1);
  for (int i = 0; i < 300; ++i) drawn.insert(option_list(draw_style(random), {"x", "y"}));
  EXPECT_GT(drawn.size(), 150U);
}

TEST(Items, TheAnswerIsTheMarkerWhereMarkersAreNames) {
  OptionStyle letters;
  letters.marker = OptionStyle::Marker::letter;
  letters.open = "(";
  letters.close = ")";
  const OptionStyle plain;
  const Record record = choice_record("q");
  EXPECT_EQ(item_of(record, &letters).answer, "(B)");
  EXPECT_EQ(item_of(record, &plain).answer, "green");
  EXPECT_EQ(item_of(record, nullptr).answer, "green");
}

class Prompts : public testing::Test {
 protected:
  Prompts() : tokenizer_(small_model()) {}
  std::vector<Example> make(const std::string& templates, const formats::FileContent& content, const char* variant,
                            const PromptLimits& limits = {}) {
    const TemplateFile file = parse_templates(templates, "t.txt", "t", 1);
    PromptMaker maker(file, content, "task", tokenizer_, limits);
    std::vector<Example> all;
    maker.make(find_variant(variant, "test"), [&](Example&& example) { all.push_back(std::move(example)); });
    counts_ = maker.counts();
    return all;
  }
  std::string text(const TokenIds& ids) const { return tokenizer_.decode(ids); }

  Tokenizer tokenizer_;
  PromptCounts counts_;
};

const char kTemplates[] =
    "category = c\nseparator = \\n\\n\ncue = A:\n[one]\ninput = first {question}{choices}\n[two]\ninput = second "
    "{question}{choices}\n[steps]\nchain_of_thought = yes\ninput = {question}{choices}\ntarget = {rationale} so "
    "{answer}\n[back]\ninverted = yes\ninput = {rationale} gives {answer}\ntarget = {question}\n";

formats::FileContent many(int count) {
  formats::FileContent content;
  for (int i = 0; i < count; ++i) content.records.push_back(choice_record("question " + std::to_string(i), i % 3));
  return content;
}

TEST_F(Prompts, EveryRecordOnceInAVariantThroughTemplatesInRotation) {
  const auto content = many(20);
  const auto all = make(kTemplates, content, "zero_shot");
  ASSERT_THAT(all, SizeIs(20));
  std::map<std::string, int> by_template;
  for (const Example& example : all) ++by_template[example.template_name];
  EXPECT_EQ(by_template["one"], 10);
  EXPECT_EQ(by_template["two"], 10);
  EXPECT_EQ(counts_.examples["zero_shot"], 20);
  // The same again, whatever was made before.
  const auto again = make(kTemplates, content, "zero_shot");
  for (std::size_t i = 0; i < all.size(); ++i) EXPECT_EQ(all[i].input, again[i].input);
}

TEST_F(Prompts, WithoutOptionsTheListIsGoneAndTheAnswerIsItsText) {
  for (const Example& example : make(kTemplates, many(12), "zero_shot_no_options")) {
    EXPECT_THAT(text(example.input), Not(HasSubstr("blue")));
    EXPECT_TRUE((std::set<std::string>{"red", "green", "blue"}.contains(text(example.target)))) << text(example.target);
  }
  formats::FileContent open = many(4);
  for (Record& record : open.records) record.choices.clear(), record.labels.clear(), record.gold = -1;
  EXPECT_THAT(make(kTemplates, open, "zero_shot_no_options"), IsEmpty());  // it would repeat zero_shot
  EXPECT_THAT(make(kTemplates, open, "zero_shot"), SizeIs(4));
}

TEST_F(Prompts, ReasonsComeBeforeTheAnswerAndInvertedFormsAskForTheQuestion) {
  for (const Example& example : make(kTemplates, many(6), "cot")) {
    EXPECT_THAT(text(example.target), StartsWith("Reason of question"));
    EXPECT_THAT(text(example.target), testing::EndsWith("so " + example.answer));
  }
  for (const Example& example : make(kTemplates, many(6), "cot_inverted")) {
    EXPECT_THAT(text(example.target), StartsWith("question"));
    EXPECT_EQ(example.template_name, "back");
  }
  EXPECT_THAT(make(kTemplates, many(3), "one_shot_explained"), IsEmpty());
}

TEST_F(Prompts, ExemplarsNeverAskTheQuery) {
  formats::FileContent content = many(15);
  // Copies of questions under other keys are no exemplars either.
  for (int i = 0; i < 15; ++i) {
    content.records.push_back(content.records[std::size_t(i)]);
    content.records.back().key += " copy";
  }
  for (const Example& example : make(kTemplates, content, "few_shot_no_options")) {
    const std::string prompt = text(example.input);  // templates are not mixed without options
    EXPECT_FALSE(prompt.find("first ") != std::string::npos && prompt.find("second ") != std::string::npos) << prompt;
  }
  const auto all = make(kTemplates, content, "few_shot");
  EXPECT_GT(all.size(), 20U);
  EXPECT_EQ(std::int64_t(all.size()) + counts_.without_exemplars, 30);
  std::map<std::size_t, int> shots;
  int mixed = 0;
  for (const Example& example : all) {
    const std::string prompt = text(example.input);
    std::vector<std::string> asked;
    for (std::size_t at = prompt.find("question "); at != std::string::npos; at = prompt.find("question ", at + 1)) {
      const std::size_t number = at + 9;
      asked.push_back(prompt.substr(number, prompt.find(' ', number) - number));
    }
    ASSERT_GE(asked.size(), 2U) << prompt;
    for (std::size_t i = 0; i + 1 < asked.size(); ++i) EXPECT_NE(asked[i], asked.back()) << prompt;
    EXPECT_THAT(prompt, testing::EndsWith("A:"));
    // Five exemplars come through templates drawn for each; more only where all come through the prompt's own.
    const bool both = prompt.find("first ") != std::string::npos && prompt.find("second ") != std::string::npos;
    EXPECT_FALSE(both && asked.size() - 1 > 5) << prompt;
    mixed += both ? 1 : 0;
    ++shots[asked.size() - 1];
  }
  EXPECT_GE(shots.size(), 3U);  // the number of exemplars varies
  EXPECT_GT(shots.rbegin()->first, 5U);
  EXPECT_GT(mixed, 3);
}

TEST_F(Prompts, ExemplarsAreLeftOutUntilThePromptFits) {
  PromptLimits limits;
  limits.few_shot_tokens = 60;
  for (const Example& example : make(kTemplates, many(30), "few_shot_no_options", limits)) {
    EXPECT_LE(example.input.size(), 60U);
  }
  limits.few_shot_tokens = 8;
  EXPECT_THAT(make(kTemplates, many(5), "few_shot", limits), IsEmpty());
  EXPECT_EQ(counts_.without_exemplars, 5);
}

TEST_F(Prompts, LongInputsAndTargetsAreCut) {
  PromptLimits limits;
  limits.input_tokens = 6;
  limits.target_tokens = 3;
  for (const Example& example : make(kTemplates, many(5), "cot", limits)) {
    EXPECT_EQ(example.input.size(), 5U);  // one is left for the end of sequence
    EXPECT_EQ(example.target.size(), 2U);
  }
  EXPECT_EQ(counts_.cut, 5);
}

formats::FileContent task_with_definition() {
  formats::FileContent content;
  content.facts.definition = "Name the colour.";
  content.facts.demonstrations = {{"sky", "blue", "it is"}, {"grass", "green", "it grows"}, {"blood", "red", "iron"}};
  for (const char* thing : {"sky", "snow", "coal"}) {
    Record record;
    record.key = record.question = record.question_as_written = thing;
    record.answers = {"white", "pale"};
    record.definition = content.facts.definition;
    content.records.push_back(record);
  }
  return content;
}

TEST_F(Prompts, TasksWithADefinitionShowTwoOfTheirOwnExemplars) {
  const char* templates =
      "category = c\nseparator = \\n\\n\ncue = Out:\n[plain]\nhead = {definition}\ninput = In: {question}\n[why]\n"
      "explained = yes\ninput = {definition} {example_input} is {example_output}: {example_explanation}. {question}?\n";
  const auto few = make(templates, task_with_definition(), "few_shot");
  ASSERT_THAT(few, SizeIs(3));
  for (const Example& example : few) {
    const std::string prompt = text(example.input);
    EXPECT_THAT(prompt, StartsWith("Name the colour. In: "));
    std::size_t count = 0, skies = 0;
    for (std::size_t at = prompt.find("In: "); at != std::string::npos; at = prompt.find("In: ", at + 1)) ++count;
    for (std::size_t at = prompt.find("sky"); at != std::string::npos; at = prompt.find("sky", at + 1)) ++skies;
    EXPECT_EQ(count, 3U) << prompt;
    EXPECT_LE(skies, 1U) << prompt;  // the query's own question is no exemplar
    EXPECT_TRUE(text(example.target) == "white" || text(example.target) == "pale");
  }
  const auto explained = make(templates, task_with_definition(), "one_shot_explained");
  ASSERT_THAT(explained, SizeIs(3));
  EXPECT_THAT(text(explained[0].input), StartsWith("Name the colour. "));
}

class Evaluations : public Prompts {
 protected:
  std::vector<Example> evaluate(const std::string& templates, formats::FileContent exemplars,
                                const formats::FileContent& content, std::vector<std::string> names, int shots,
                                const PromptLimits& limits = {}, const std::string& prompt = "") {
    const TemplateFile file = parse_templates(templates, "t.txt", "t", 1);
    Source source;
    source.name = "bench";
    source.where = "plan:1";
    source.variants = std::move(names);
    source.shots = shots;
    std::vector<Example> all;
    const EvaluationParts parts{file, std::move(exemplars), prompt};
    make_evaluation(source, parts, content, tokenizer_, limits, counts_,
                    [&](Example&& example) { all.push_back(std::move(example)); });
    return all;
  }
};

TEST_F(Evaluations, ShowTheFirstExemplarsAndCarryChoices) {
  const char* templates =
      "category = c\nseparator = \\n\\n\n[direct]\nhead = About {name}.\ninput = {question}\\n{lettered}\ncue = "
      "Answer:\ntarget = {letter}\n";
  formats::FileContent exemplars = many(5), content;
  content.records = {choice_record("asked", 2)};
  for (auto* each : {&exemplars, &content}) {
    for (Record& record : each->records)
      record.labels = {"A", "B", "C"}, record.answers = {record.labels[std::size_t(record.gold)]};
  }
  content.records[0].task = "my_colours";
  const auto all = evaluate(templates, exemplars, content, {"few_shot"}, 2);
  ASSERT_THAT(all, SizeIs(1));
  EXPECT_EQ(
      text(all[0].input),
      "About my colours. question 0 A. red B. green C. blue Answer: A question 1 A. red B. green C. blue Answer: B "
      "asked A. red B. green C. blue Answer:");
  EXPECT_EQ(text(all[0].target), "C");
  ASSERT_THAT(all[0].choices, SizeIs(3));
  EXPECT_EQ(text(all[0].choices[0]), "A");
  EXPECT_EQ(all[0].choice_bytes, (std::vector<std::int32_t>{1, 1, 1}));
  EXPECT_EQ(all[0].gold, 2);
  EXPECT_EQ(all[0].answer, "C");
  // What does not fit is left out from the end.
  PromptLimits limits;
  limits.input_tokens = std::int64_t(all[0].input.size());
  const std::string shorter = text(evaluate(templates, exemplars, content, {"few_shot"}, 2, limits)[0].input);
  EXPECT_THAT(shorter, HasSubstr("question 0"));
  EXPECT_THAT(shorter, Not(HasSubstr("question 1")));
  EXPECT_THAT(shorter, testing::EndsWith("asked A. red B. green C. blue Answer:"));
  // So does the last one, and the cue stays.
  limits.input_tokens -= std::int64_t(tokenizer_.encode("question 1 A. red B. green C. blue Answer: B").size()) + 5;
  const std::string bare = text(evaluate(templates, exemplars, content, {"few_shot"}, 2, limits)[0].input);
  EXPECT_THAT(bare, Not(HasSubstr("question")));
  EXPECT_THAT(bare, testing::EndsWith("asked A. red B. green C. blue Answer:"));
  // The prompt of a file stands instead of exemplars and heading.
  const std::string prompted = text(evaluate(templates, {}, content, {"few_shot"}, 0, {}, "What is red?")[0].input);
  EXPECT_EQ(prompted, "What is red? asked A. red B. green C. blue Answer:");
  EXPECT_THAT(error_of([&] { evaluate(templates, exemplars, content, {"few_shot"}, 6); }),
              HasSubstr("plan:1: [bench] asks for 6 exemplars in its variant few_shot, found 5"));
}

TEST_F(Evaluations, ChainOfThoughtHasNoChoicesAndKeepsTheReleasedAnswer) {
  const char* templates =
      "category = c\nseparator = \\n\\n\n[steps]\nchain_of_thought = yes\ninput = Q: {question}\ncue = A:\ntarget = "
      "{rationale} The answer is {released_answer}.\n";
  Record problem;
  problem.key = problem.question = "How many?";
  problem.answers = {"6"};
  formats::FileContent exemplars = many(1), content;
  content.records = {problem};
  const auto all = evaluate(templates, exemplars, content, {"cot_few_shot"}, 1);
  ASSERT_THAT(all, SizeIs(1));
  EXPECT_EQ(text(all[0].input), "Q: question 0 A: Reason of question 0 The answer is red. Q: How many? A:");
  EXPECT_EQ(all[0].answer, "6");
  EXPECT_THAT(all[0].choices, IsEmpty());
}

TEST(HeldOut, QuestionsAreFoundWhateverTheirCaseBlanksAndWrapping) {
  HeldOutQuestions held;
  Record question;
  question.question = "How many apples does the old farmer sell on Monday?";
  Record brief = choice_record("Which colour?");
  held.add({question, brief});
  EXPECT_EQ(held.size(), 2U);
  Record same = question;
  same.question = "how many  apples does the old farmer SELL on monday";
  EXPECT_TRUE(held.contains(same));
  same.question = "Answer this.\nHow many apples does the old farmer sell on Monday?\nOPTIONS: no";
  EXPECT_TRUE(held.contains(same));
  same.question = "How many pears does the old farmer sell on Monday?";
  EXPECT_FALSE(held.contains(same));
  // A brief question counts with its choices, in any order.
  Record shuffled = brief;
  std::swap(shuffled.choices[0], shuffled.choices[2]);
  EXPECT_TRUE(held.contains(shuffled));
  shuffled.choices[0] = "violet";
  EXPECT_FALSE(held.contains(shuffled));
}

}  // namespace
}  // namespace flanmoe::flan
