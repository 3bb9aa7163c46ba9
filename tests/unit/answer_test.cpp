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

}  // namespace
}  // namespace flanmoe
