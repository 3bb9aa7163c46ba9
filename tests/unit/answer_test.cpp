// Answer extraction and exact match against a table of outputs written by hand.
#include "evaluate/answer.hpp"

#include <gtest/gtest.h>

#include <vector>

namespace flanmoe {
namespace {

struct Case {
  const char* output;
  const char* gold;
  bool chain_of_thought;
  const char* extracted;
  bool right;
};

constexpr bool cot = true;
constexpr bool direct = false;

const std::vector<Case> cases = {
    // Numbers after the trigger: the first one.
    {"3 + 4 = 7. The answer is 7.", "7", cot, "7", true},
    {"3 + 4 = 7. The answer is 7", "7", cot, "7", true},
    {"The answer is 7 apples.", "7", cot, "7", true},
    {"The answer is $7.", "7", cot, "7", true},
    {"The answer is 7.0.", "7", cot, "7.0", true},
    {"The answer is 7.50", "7.5", cot, "7.50", true},
    {"The answer is 1,234.", "1234", cot, "1234", true},
    {"The answer is 1234.", "1,234", cot, "1234", true},
    {"The answer is 1,234,567 dollars.", "1234567", cot, "1234567", true},
    {"The answer is -3.", "-3", cot, "-3", true},
    {"The answer is -3.", "3", cot, "-3", false},
    {"The answer is 3 or 4.", "3", cot, "3", true},
    {"The answer is 3 or 4.", "4", cot, "3", false},
    {"First the answer is 5. No: the answer is 6.", "6", cot, "6", true},
    {"First the answer is 5. No: the answer is 6.", "5", cot, "6", false},
    {"So the answer is 12.", "12", cot, "12", true},
    {"THE ANSWER IS 12", "12", cot, "12", true},
    {"The  answer\nis 12", "12", cot, "12", true},
    {"The answer is: 12", "12", cot, "12", true},
    {"The answer is (12).", "12", cot, "12", true},
    {"The answer is 007.", "7", cot, "007", true},
    {"The answer is 0.", "0", cot, "0", true},
    {"The answer is -0.", "0", cot, "-0", true},
    {"The answer is 50%.", "50", cot, "50", true},
    {"The answer is 10-3.", "10", cot, "10", true},
    {"The answer is x-3.", "-3", cot, "-3", true},
    {"The answer is 3.14.15", "3.14", cot, "3.14", true},
    {"The answer is 99999999999999999999.", "99999999999999999999", cot, "99999999999999999999", true},
    {"The answer is 99999999999999999998.", "99999999999999999999", cot, "99999999999999999998", false},
    {"The answer is seven.", "7", cot, "", false},
    {"The answer is", "7", cot, "", false},
    {"I have 9 pens. The answer is many.", "9", cot, "", false},
    // Numbers without the trigger: the last one.
    {"2 + 3 = 5", "5", cot, "5", true},
    {"2 + 3 = 5.", "5", cot, "5", true},
    {"We have 5 now, from 2 and 3", "5", cot, "3", false},
    {"1,000 and then 2,000", "2000", cot, "2000", true},
    {"answer: 4", "4", cot, "4", true},
    {"no digits here", "4", cot, "", false},
    {"", "4", cot, "", false},
    {"- 4", "4", cot, "4", true},
    {"--4", "-4", cot, "-4", true},
    {".5", "5", cot, "5", true},
    // Yes and no: any case, first after the trigger, last otherwise.
    {"Llamas are big. So the answer is no.", "no", cot, "no", true},
    {"So the answer is NO.", "no", cot, "no", true},
    {"So the answer is Yes!", "yes", cot, "yes", true},
    {"So the answer is yes, not no.", "yes", cot, "yes", true},
    {"yes ... or rather no", "no", cot, "no", true},
    {"yes ... or rather no", "yes", cot, "no", false},
    {"So the answer is not known.", "no", cot, "", false},
    {"So the answer is nowhere, no?", "no", cot, "no", true},
    {"So the answer is \"yes\".", "Yes", cot, "yes", true},
    {"So the answer is noë.", "no", cot, "", false},
    // Text after the trigger.
    {"It comes later. So the answer is (D).", "(D)", cot, "(D)", true},
    {"So the answer is (D)", "(D)", cot, "(D)", true},
    {"So the answer is (d).", "(D)", cot, "(d)", false},
    {"So the answer is (D) because it is.", "(D)", cot, "(D) because it is", false},
    {"So the answer is True.", "True", cot, "True", true},
    {"So the answer is true.", "True", cot, "true", false},
    {"So the answer is valid.", "valid", cot, "valid", true},
    {"So the answer is:  a  small   cat .", "a small cat", cot, "a small cat", true},
    {"So the answer is ] ) >.", "] ) >", cot, "] ) >", true},
    {"(D)", "(D)", cot, "(D)", true},
    {"the answer is a. the answer is b.", "a. the answer is b", cot, "b", false},
    {"The answer is", "cat", cot, "", false},
    {"The answer is .", "cat", cot, "", false},
    // Direct: the whole output is the answer.
    {"to run quickly", "to run quickly", direct, "to run quickly", true},
    {"  to   run quickly\n", "to run quickly", direct, "to run quickly", true},
    {"to run quickly.", "to run quickly", direct, "to run quickly", true},
    {"to run quickly", "to run quickly.", direct, "to run quickly", true},
    {"To run quickly", "to run quickly", direct, "To run quickly", false},
    {"to run", "to run quickly", direct, "to run", false},
    {"The answer is noun.", "noun", direct, "The answer is noun", false},
    {"42", "42", direct, "42", true},
    {"42.", "42.0", direct, "42", true},
    {"1,042", "1042", direct, "1,042", true},
    {"it is 42", "42", direct, "it is 42", false},
    {"Yes.", "yes", direct, "Yes", true},
    {"yes it is", "yes", direct, "yes it is", false},
    {"e.g.", "e.g.", direct, "e.g", true},
    {"", "", direct, "", false},
    {".", "cat", direct, "", false},
    {"Häuser", "Häuser", direct, "Häuser", true},
    {"a\tb", "a b", direct, "a b", true},
    {"v1.2.3", "v1.2.3", direct, "v1.2.3", true},
};

TEST(Answer, TableOfOutputsGivesTheExpectedAnswers) {
  EXPECT_GE(cases.size(), 60U);
  for (const Case& c : cases) {
    const AnswerKind kind = kind_of_answer(c.gold);
    const std::string answer = extract_answer(c.output, kind, c.chain_of_thought);
    EXPECT_EQ(answer, c.extracted) << "output: " << c.output << "\ngold: " << c.gold;
    EXPECT_EQ(answers_match(answer, c.gold, kind), c.right) << "output: " << c.output << "\ngold: " << c.gold;
  }
}

TEST(Answer, KindFollowsTheGoldAnswer) {
  for (const char* gold : {"7", "-7", "1,234", "0.5", "+3", "3.", " 12 "}) {
    EXPECT_EQ(kind_of_answer(gold), AnswerKind::number) << gold;
  }
  for (const char* gold : {"yes", "No", "YES.", " no "}) EXPECT_EQ(kind_of_answer(gold), AnswerKind::yes_no) << gold;
  for (const char* gold : {"", "cat", "(A)", "7 cats", "1.2.3", "-", "yes or no", "None", ".5", "3-4", "1e5"}) {
    EXPECT_EQ(kind_of_answer(gold), AnswerKind::text) << gold;
  }
}

TEST(Answer, NumbersAreComparedByValueAndNothingElseIs) {
  EXPECT_TRUE(answers_match("05.10", "5.1", AnswerKind::number));
  EXPECT_FALSE(answers_match("05.10", "5.1", AnswerKind::text));
  EXPECT_FALSE(answers_match("5 1", "51", AnswerKind::number));
  EXPECT_FALSE(answers_match("cat", "dog", AnswerKind::number));
  EXPECT_FALSE(answers_match("", "", AnswerKind::text));
}

TEST(Answer, WhitespaceCollapses) {
  EXPECT_EQ(collapse_whitespace(" \t a \n\n b\r\n"), "a b");
  EXPECT_EQ(collapse_whitespace("   "), "");
}

struct RuleCase {
  Extraction rule;
  const char* output;
  const char* gold;
  bool chain_of_thought;
  const char* extracted;
  bool right;
};

constexpr Extraction letter = Extraction::letter, number = Extraction::number, yes_no = Extraction::yes_no,
                     text = Extraction::text, whole = Extraction::whole;

const std::vector<RuleCase> rule_cases = {
    // Letters of options, asked for directly.
    {letter, "B", "B", direct, "B", true},
    {letter, " B. ", "B", direct, "B", true},
    {letter, "(B)", "B", direct, "B", true},
    {letter, "(B)", "(B)", direct, "B", true},
    {letter, "B) Paris", "B", direct, "B", true},
    {letter, "(B) Paris", "B", direct, "B", true},
    {letter, "B: Paris", "B", direct, "B", true},
    {letter, "B, because", "(B)", direct, "B", true},
    {letter, "C", "B", direct, "C", false},
    {letter, "b", "B", direct, "", false},
    {letter, "A cat", "A", direct, "", false},
    {letter, "Paris", "B", direct, "", false},
    {letter, "Because (B)", "B", direct, "", false},
    {letter, "BC", "B", direct, "", false},
    {letter, "", "B", direct, "", false},
    // After the trigger: brackets first, then a capital that stands alone.
    {letter, "It is warm. The answer is (C).", "C", cot, "C", true},
    {letter, "It is warm. The answer is C.", "C", cot, "C", true},
    {letter, "The answer is C", "(C)", cot, "C", true},
    {letter, "The answer is, I think, (D)", "D", cot, "D", true},
    {letter, "The answer is: B) blue", "B", cot, "B", true},
    {letter, "the answer is (A). No, the answer is (B).", "B", cot, "B", true},
    {letter, "the answer is (A) or (B)", "A", cot, "A", true},
    {letter, "The answer is Paris.", "B", cot, "", false},
    {letter, "The answer is I'm sure B", "B", cot, "B", true},
    {letter, "The answer is option D.", "D", cot, "D", true},
    // Without the trigger: the last in brackets.
    {letter, "(A) is cold and (B) is warm", "B", cot, "B", true},
    {letter, "A is cold and B is warm", "B", cot, "", false},
    {letter, "So it must be (C)", "C", cot, "C", true},
    // A rule holds where the right answer looks like something else.
    {text, "The answer is 7.", "7", cot, "7", true},
    {text, "The answer is 7.0", "7", cot, "7.0", false},
    {text, "So the answer is yes.", "Yes", cot, "yes", false},
    {text, "So the answer is (A).", "(A)", cot, "(A)", true},
    {number, "It costs $1,050.50.", "1050.5", cot, "1050.50", true},
    {number, "The answer is 9 (apples)", "9", cot, "9", true},
    {number, "9", "9", direct, "9", true},
    {yes_no, "So the answer is No.", "no", cot, "no", true},
    {yes_no, "Yes", "yes", direct, "Yes", true},
    {yes_no, "Yes, it is", "yes", direct, "Yes, it is", false},
    {whole, "I think. The answer is 7.", "7", cot, "I think. The answer is 7", false},
    {whole, "a  red house", "a red house", cot, "a red house", true},
};

TEST(Answer, RulesOfTasksDecideHowAnAnswerIsFound) {
  for (const RuleCase& c : rule_cases) {
    const AnswerKind kind = kind_of_answer(c.rule, c.gold);
    const std::string answer = extract_answer(c.output, kind, c.chain_of_thought);
    EXPECT_EQ(answer, c.extracted) << "output: " << c.output << "\ngold: " << c.gold;
    EXPECT_EQ(answers_match(answer, c.gold, kind), c.right) << "output: " << c.output << "\ngold: " << c.gold;
  }
  EXPECT_EQ(kind_of_answer(Extraction::automatic, "7"), AnswerKind::number);
}

TEST(Answer, AnyOfSeveralRightAnswersWillDo) {
  EXPECT_TRUE(matches_any_answer("4", {"four", "4.0"}, AnswerKind::number));
  EXPECT_FALSE(matches_any_answer("5", {"four", "4"}, AnswerKind::number));
  EXPECT_FALSE(matches_any_answer("4", {}, AnswerKind::text));
}

TEST(Answer, RougeLEqualsValuesByHand) {
  EXPECT_DOUBLE_EQ(rouge_l("the cat sat", "the cat sat"), 1.0);
  // Common: the cat the mat = 4 of 6 and 6 words.
  EXPECT_DOUBLE_EQ(rouge_l("the cat sat on the mat", "the cat was under the mat"), 2 * 4.0 / 12);
  // Order counts: "b a" and "a b" have one word in common order.
  EXPECT_DOUBLE_EQ(rouge_l("b a", "a b"), 0.5);
  // Case and punctuation do not; 3 common of 3 and 5: P = 1, R = 0.6.
  EXPECT_DOUBLE_EQ(rouge_l("The CAT, sat!", "the cat sat on-mats"), 0.75);
  EXPECT_DOUBLE_EQ(rouge_l("a x b y c", "a b c"), 0.75);
  EXPECT_DOUBLE_EQ(rouge_l("", "a"), 0.0);
  EXPECT_DOUBLE_EQ(rouge_l("...", "a"), 0.0);
  EXPECT_DOUBLE_EQ(rouge_l("a", ""), 0.0);
  // A letter outside ASCII separates words: h, user; h, user, x.
  EXPECT_DOUBLE_EQ(rouge_l("H\xc3\xa4user", "H\xc3\xa4user x"), 0.8);
  EXPECT_DOUBLE_EQ(rouge_l("running", "runs"), 1.0);  // words are stemmed
  EXPECT_DOUBLE_EQ(rouge_l("his", "hi"), 0.0);        // of more than 3 letters
}

TEST(Answer, RightAnswersThatAreNoNumbersAreComparedAsWhatTheyAre) {
  for (const char* gold : {"3:4", "Yes", "5:45", "Mary", "1,200"}) {
    const AnswerKind kind = kind_of_answer(Extraction::number, gold);
    const auto answer = extract_answer(std::string("It follows. The answer is ") + gold + ".", kind, true);
    EXPECT_TRUE(answers_match(answer, gold, kind)) << gold << " " << answer;
    EXPECT_FALSE(answers_match(extract_answer("The answer is 3.", kind, true), gold, kind)) << gold;
  }
}

}  // namespace
}  // namespace flanmoe
