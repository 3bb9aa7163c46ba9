#include "data/formats/formats.hpp"

#include <algorithm>

#include "data/text.hpp"
#include "deck/table.hpp"

namespace flanmoe::formats {
namespace {

/// The label at the start of a choice, as "(A)" or "A."; empty when there is none.
std::string_view label_of(std::string_view line) {
  const std::size_t blank = line.find(' ');
  const std::string_view word = line.substr(0, blank);
  const bool enclosed = word.size() == 3 && word.front() == '(' && word.back() == ')';
  const bool dotted = word.size() == 2 && (word.back() == '.' || word.back() == ')');
  const char letter = enclosed ? word[1] : dotted ? word[0] : ' ';
  return letter >= 'A' && letter <= 'Z' ? word : std::string_view{};
}

/// Adds the choice of a line "- (A) text", "(A) text", "A. text" or "- text".
void add_choice(Record& record, std::string_view line) {
  line = trim(line);
  if (line.starts_with("- ")) line = trim(line.substr(2));
  const std::string_view label = label_of(line);
  record.labels.emplace_back(label);
  record.choices.emplace_back(trim(line.substr(label.size())));
}

}  // namespace

void check_answers(const Record& record, const std::string& where) {
  for (const auto* texts : {&record.answers, &record.choices}) {
    for (const std::string& text : *texts) {
      if (text.find('\0') != std::string::npos) {
        fail("{}: expected answers without zero bytes, found \"{}\"", where, shown(text));
      }
    }
  }
}

void separate_choices(Record& record) {
  const std::string& whole = record.question_as_written;
  record.question = whole;
  std::size_t at = std::string::npos, after = 0;
  for (const std::string_view heading : {"Options:", "OPTIONS:", "Choices:"}) {
    const std::size_t found = whole.rfind(heading);
    const bool begins_line = found == 0 || (found != std::string::npos && whole[found - 1] == '\n');
    if (begins_line && (at == std::string::npos || found > at)) {
      at = found;
      after = found + heading.size();
    }
  }
  if (at == std::string::npos) return;
  Record read;
  for (const std::string& line : split(std::string_view(whole).substr(after), '\n')) {
    if (!trim(line).empty()) add_choice(read, line);
  }
  const bool empty_choice =
      std::any_of(read.choices.begin(), read.choices.end(), [](const std::string& choice) { return choice.empty(); });
  if (read.choices.size() < 2 || empty_choice) return;
  record.choices = std::move(read.choices);
  record.labels = std::move(read.labels);
  record.question = std::string(trim(std::string_view(whole).substr(0, at)));
}

std::int32_t choice_of(const Record& record, std::string_view answer) {
  answer = trim(answer);
  std::int32_t found = -1;
  const auto letter = [](std::string_view label) {
    const std::size_t at = label.find_first_not_of('(');
    return at == std::string_view::npos ? std::string_view{} : label.substr(at, 1);
  };
  for (std::size_t c = 0; c < record.choices.size(); ++c) {
    const std::string& label = record.labels[c];
    const bool by_label = !label.empty() && (answer == label || answer == letter(label));
    // An answer that fits two choices says nothing.
    const bool by_name = !answer.empty() && record.choices[c].starts_with(std::string(answer) + ":");
    if (by_label || by_name || answer == record.choices[c]) {
      if (found >= 0) return -1;
      found = std::int32_t(c);
    }
  }
  return found;
}

const std::vector<Format>& formats() {
  static const std::vector<Format> all = {
      {"flat", read_flat, "JSON lines of ready prompts: inputs, targets, task_name, template_type"},
      {"cot_tsv", read_cot_tsv, "lines of question, answer and rationale, separated by tabs"},
      {"natural_instructions", read_natural_instructions, "a task of Super-NaturalInstructions: JSON"},
      {"gsm8k", read_gsm8k, "JSON lines: question, answer with steps and #### result"},
      {"multiple_choice", read_multiple_choice,
       "JSON lines: query, choices, gold; or context_options, continuation, gold"},
      {"commonsense_qa", read_commonsense_qa, "JSON lines: question with stem and choices, answerKey"},
      {"strategyqa", read_strategyqa, "JSON list: question, answer, facts"},
      {"svamp", read_svamp, "JSON list: Body, Question, Answer"},
      {"asdiv", read_asdiv, "XML: ProblemSet of Problem"},
      {"bbh", read_bbh, "JSON: examples of input and target"},
      {"bbh_prompt", read_bbh_prompt, "text: canary, instruction and worked exemplars (Q: ... A: ...)"},
      {"mmlu", read_mmlu, "CSV: question, four choices, letter"},
      {"text", read_text, "plain text; empty lines separate documents"},
      {"text_lines", read_text_lines, "plain text; every line is a document"},
  };
  return all;
}

const Format& find_format(const std::string& name, const std::string& where) {
  std::vector<std::string> names;
  for (const Format& format : formats()) {
    if (format.name == name) return format;
    names.emplace_back(format.name);
  }
  usage_fail("{}: there is no format '{}'; nearest: {}", where, name, deck_detail::nearest_name(name, names));
}

FileContent read_all(const Format& format, Input& input, BadRecords& bad) {
  FileContent content;
  format.read(input, bad,
              {[&](const FileFacts& facts) { content.facts = facts; },
               [&](Record&& record) { content.records.push_back(std::move(record)); }});
  return content;
}

}  // namespace flanmoe::formats
