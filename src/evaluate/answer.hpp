// From the text a model wrote to its answer, and whether that answer is right (paper facts 6.2 to 6.4).
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "data/task_info.hpp"

namespace flanmoe {

/// What the right answer looks like; it decides how an answer is found and compared.
enum class AnswerKind : std::uint8_t { text, number, yes_no, letter, whole };

/// number: digits with an optional sign, commas and a fraction ("1,234.50"); yes_no: "yes" or "no" in any case;
/// text: everything else.
AnswerKind kind_of_answer(std::string_view gold);
/// The kind that a task's rule asks for; `gold` decides when the rule is automatic.
AnswerKind kind_of_answer(Extraction rule, std::string_view gold);

/// The answer inside `output`, in the form that answers_match compares.
/// Chain of thought: the piece after the last "the answer is" (any case), or all of the text when it never occurs.
///   number: commas are deleted; the first number -?\d+\.?\d* when the trigger occurred, otherwise the last one.
///   yes_no: lower case, punctuation to blanks; the first word that is yes or no when the trigger occurred, otherwise
///   the last one.
///   text: a colon after the trigger goes.
///   letter: a capital letter that is an option. After the trigger: the first in brackets, or else the first that
///   stands alone; without it: the last in brackets. whole: as direct.
/// Direct: all of the text is the answer; no searching. A letter: "(B)" or "B" at the beginning, the latter with one of
/// . ) : , ; or nothing behind it.
/// Always: outer and repeated whitespace goes, and one final period. "" when there is no answer.
std::string extract_answer(std::string_view output, AnswerKind kind, bool chain_of_thought);

/// Exact match of two answers after the same normalisation on both sides. Text is compared with case (options, names
/// and strings such as "True" are told apart by the published protocols); yes and no without; numbers by value as
/// decimal strings ("05.10" equals "5.1"), so that no digit is lost. An empty answer matches nothing.
bool answers_match(std::string_view answer, std::string_view gold, AnswerKind kind);

/// True when the answer matches one of them.
bool matches_any_answer(std::string_view answer, const std::vector<std::string>& golds, AnswerKind kind);

/// ROUGE-L of two texts: the F-measure of the longest common subsequence of their words. Words are runs of letters and
/// digits of ASCII, lower case, stemmed (porter_stem) when longer than 3 characters: the value of the package
/// rouge_score with use_stemmer, by which Super-NaturalInstructions is published. 0 when either has no words.
double rouge_l(std::string_view text, std::string_view reference);

/// Outer whitespace removed, inner runs of whitespace to one blank.
std::string collapse_whitespace(std::string_view text);

}  // namespace flanmoe
