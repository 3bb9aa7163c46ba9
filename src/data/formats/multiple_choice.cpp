// Multiple choice as JSON lines: a query with choices, or contexts that share a continuation.
#include <algorithm>

#include "data/formats/formats.hpp"
#include "data/formats/json_text.hpp"
#include "data/text.hpp"

namespace flanmoe::formats {
namespace {

std::int32_t gold_of(const Json& json, std::size_t choices, const std::string& where) {
  const std::int64_t gold = integer_member(json, "gold", where);
  if (gold < 0 || gold >= std::int64_t(choices)) {
    fail("{}: expected \"gold\" to be one of {} choices, from 0, found {}", where, choices, gold);
  }
  return std::int32_t(gold);
}

/// "Passage: ... Question: ..." and "Context: ... Question: ..." become context and question.
void separate_context(Record& record) {
  std::string_view text = trim(record.question);
  for (const std::string_view heading : {"Passage:", "Context:"}) {
    const std::size_t at = text.rfind("\nQuestion:");
    if (!text.starts_with(heading) || at == std::string_view::npos) continue;
    record.context = std::string(trim(text.substr(heading.size(), at - heading.size())));
    text = trim(text.substr(at + 1));
  }
  if (text.starts_with("Question:")) text = trim(text.substr(9));
  record.question = std::string(text);
}

/// Choices that are mere letters stand in the query, one a line, as "A. text": takes them out of it.
void take_lettered_choices(Record& record, const std::string& where) {
  std::vector<std::string> kept;
  Record found;
  for (const std::string& line : split(record.question_as_written, '\n')) {
    const bool next =
        found.choices.size() < record.choices.size() && line.starts_with(record.choices[found.choices.size()] + ". ");
    if (next) {
      found.choices.emplace_back(trim(std::string_view(line).substr(record.choices[found.choices.size()].size() + 2)));
    } else if (line != "Choices:") {
      kept.push_back(line);
    }
  }
  if (found.choices.size() != record.choices.size()) {
    fail("{}: expected a line \"{}. ...\" for each of {} choices, found {}", where, record.choices[0],
         record.choices.size(), found.choices.size());
  }
  record.choices = std::move(found.choices);
  record.question.clear();
  for (const std::string& line : kept) record.question += (record.question.empty() ? "" : "\n") + line;
}

Record of_query(const Json& json, const std::string& where) {
  Record record;
  record.question = record.question_as_written = text_member(json, "query", where);
  record.choices = texts_member(json, "choices", where);
  if (record.choices.size() < 2) fail("{}: expected at least 2 choices, found {}", where, record.choices.size());
  const bool letters = std::all_of(record.choices.begin(), record.choices.end(), [](const std::string& choice) {
    return choice.size() == 1 && choice[0] >= 'A' && choice[0] <= 'Z';
  });
  if (letters) take_lettered_choices(record, where);
  const std::string_view shorter = trim(record.question);
  if (shorter.ends_with("Answer:")) record.question = std::string(trim(shorter.substr(0, shorter.size() - 7)));
  separate_context(record);
  return record;
}

Record of_contexts(const Json& json, const std::string& where) {
  Record record;
  const std::string continuation = text_member(json, "continuation", where);
  for (const std::string& context : texts_member(json, "context_options", where)) {
    record.choices.push_back(context + " " + continuation);
  }
  if (record.choices.size() < 2) fail("{}: expected at least 2 contexts, found {}", where, record.choices.size());
  return record;
}

}  // namespace

void read_multiple_choice(Input& input, BadRecords& bad, const Sink& sink) {
  for (std::string line; input.line(line);) {
    if (trim(line).empty()) continue;
    bad.guard([&] {
      const std::string where = input.where();
      const Json json = parse_object_line(line, where);
      Record record = json.contains("context_options") ? of_contexts(json, where) : of_query(json, where);
      record.key = std::to_string(input.line_number());
      record.labels.resize(record.choices.size());
      record.gold = gold_of(json, record.choices.size(), where);
      record.answers = {record.choices[std::size_t(record.gold)]};
      check_answers(record, where);
      sink.record(std::move(record));
    });
  }
}

}  // namespace flanmoe::formats
