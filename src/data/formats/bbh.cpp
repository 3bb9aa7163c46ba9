// BIG-Bench Hard: examples in JSON, and the worked exemplars in text files.
#include <set>

#include "data/formats/formats.hpp"
#include "data/formats/json_text.hpp"
#include "data/text.hpp"

namespace flanmoe::formats {
namespace {

constexpr std::string_view kQuestion = "Q: ", kAnswer = "A:", kCue = "Let's think step by step.",
                           kConclusion = "the answer is ";

/// Tasks without a list of options but with two targets in all are a choice between those.
void add_two_targets(std::vector<Record>& records) {
  std::set<std::string> targets;
  for (const Record& record : records) {
    if (!record.choices.empty()) return;
    targets.insert(record.answers[0]);
    if (targets.size() > 2) return;
  }
  if (targets.size() != 2) return;
  for (Record& record : records) {
    record.choices.assign(targets.begin(), targets.end());
    record.labels.assign(2, "");
    record.gold = record.answers[0] == record.choices[0] ? 0 : 1;
  }
}

/// The text after the last "the answer is ", without its full stop; splits it from the steps before.
bool separate_conclusion(Record& record, std::string_view worked) {
  const std::size_t at = worked.rfind(kConclusion);
  if (at == std::string_view::npos) return false;
  std::string_view answer = trim(worked.substr(at + kConclusion.size()));
  if (answer.ends_with('.')) answer.remove_suffix(1);
  record.answers = {std::string(answer)};
  // The sentence that says the answer ("So the answer is") is no step.
  std::string_view steps = worked.substr(0, at);
  const std::size_t end = steps.find_last_of(".\n");
  record.rationale = std::string(trim(end == std::string_view::npos ? std::string_view{} : steps.substr(0, end + 1)));
  return !answer.empty();
}

void add_exemplar(const std::string& block, const std::string& where, const Sink& sink) {
  Record record;
  const std::size_t answer = block.find("\nA:");
  if (!block.starts_with(kQuestion) || answer == std::string::npos) {
    fail("{}: expected \"Q: ...\" and a line \"A: ...\", found \"{}\"", where, shown(block));
  }
  record.key = where;
  record.question_as_written =
      std::string(trim(std::string_view(block).substr(kQuestion.size(), answer - kQuestion.size() + 1)));
  std::string_view worked = trim(std::string_view(block).substr(answer + 1 + kAnswer.size()));
  if (worked.starts_with(kCue)) worked = trim(worked.substr(kCue.size()));
  if (!separate_conclusion(record, worked)) {
    fail("{}: expected the exemplar to end with \"the answer is ...\", found \"{}\"", where, shown(worked));
  }
  separate_choices(record);
  record.gold = choice_of(record, record.answers[0]);
  check_answers(record, where);
  sink.record(std::move(record));
}

}  // namespace

void read_bbh(Input& input, BadRecords& bad, const Sink& sink) {
  const JsonFile file = parse_json_file(input, "examples");
  const Json& examples = list_of(file, "examples", input.name());
  std::vector<Record> records;
  for (std::size_t i = 0; i < examples.size(); ++i) {
    bad.guard([&] {
      const std::string where = input.where(file.lines[i]);
      Record record;
      record.key = std::to_string(i);
      record.question_as_written = text_member(examples[i], "input", where);
      record.answers = {text_member(examples[i], "target", where)};
      separate_choices(record);
      record.gold = choice_of(record, record.answers[0]);
      check_answers(record, where);
      records.push_back(std::move(record));
    });
  }
  add_two_targets(records);
  for (Record& record : records) sink.record(std::move(record));
}

void read_bbh_prompt(Input& input, BadRecords& bad, const Sink& sink) {
  std::string line, block, definition;
  std::int64_t first = 0;
  bool in_prompt = false, has_definition = false;
  const auto end_block = [&] {
    if (block.empty()) return;
    if (!is_utf8(block)) fail("{}: expected UTF-8, found \"{}\"", input.where(first), shown(block));
    if (has_definition) {
      bad.guard([&] { add_exemplar(block, input.where(first), sink); });
    } else {
      has_definition = true;
      FileFacts facts;
      facts.definition = block;
      sink.facts(facts);
    }
    block.clear();
  };
  while (input.line(line)) {
    if (!in_prompt) {
      in_prompt = line == "-----";
      continue;
    }
    // An exemplar begins with its question: an empty line inside one, or inside the instruction, does not end it.
    if (line.starts_with(kQuestion)) {
      block = std::string(trim(block));
      end_block();
    }
    if (block.empty()) first = input.line_number();
    if (!block.empty() || !trim(line).empty()) block += (block.empty() ? "" : "\n") + line;
  }
  block = std::string(trim(block));
  end_block();
  if (!in_prompt) fail("{}: expected a line \"-----\" before the prompt, found none", input.name());
  if (!has_definition) fail("{}: expected an instruction after \"-----\", found none", input.name());
}

}  // namespace flanmoe::formats
