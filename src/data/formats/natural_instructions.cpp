// Tasks of Super-NaturalInstructions: a definition, exemplars and instances in one JSON file.
#include <algorithm>

#include "data/formats/formats.hpp"
#include "data/formats/json_text.hpp"
#include "data/text.hpp"

namespace flanmoe::formats {
namespace {

constexpr std::size_t kLongestName = 512;  // of a shard's tables

bool not_blank(const std::string& text) { return !trim(text).empty(); }

FileFacts facts_of(const Json& json, const std::string& where) {
  FileFacts facts;
  const auto definition = texts_member(json, "Definition", where);
  if (definition.empty()) fail("{}: expected \"Definition\" to hold a text, found an empty list", where);
  facts.definition = definition[0];
  const auto categories = texts_member(json, "Categories", where);
  if (!categories.empty()) facts.category = categories[0];
  if (facts.category.size() > kLongestName || facts.category.find('\0') != std::string::npos) {
    fail("{}: expected the first of \"Categories\" to be a name of at most {} bytes, found \"{}\"", where, kLongestName,
         shown(facts.category));
  }
  facts.sources = texts_member(json, "Source", where);
  const Json& examples = member(json, "Positive Examples", where);
  if (!examples.is_array()) fail("{}: expected \"Positive Examples\" to be a list", where);
  for (const Json& example : examples) {
    Demonstration shown_example{text_member(example, "input", where), text_member(example, "output", where), ""};
    if (example.contains("explanation")) shown_example.explanation = text_member(example, "explanation", where);
    facts.demonstrations.push_back(std::move(shown_example));
  }
  return facts;
}

}  // namespace

void read_natural_instructions(Input& input, BadRecords& bad, const Sink& sink) {
  const JsonFile file = parse_json_file(input, "Instances");
  const std::string& name = input.name();
  if (!file.value.is_object()) fail("{}: expected a JSON object", name);
  const FileFacts facts = facts_of(file.value, name);
  const Json& instances = list_of(file, "Instances", name);
  sink.facts(facts);
  for (std::size_t i = 0; i < instances.size(); ++i) {
    bad.guard([&] {
      const std::string where = input.where(file.lines[i]);
      Record record;
      record.key = instances[i].contains("id") ? text_member(instances[i], "id", where) : std::to_string(i);
      record.question = record.question_as_written = text_member(instances[i], "input", where);
      record.answers = texts_member(instances[i], "output", where);
      if (record.answers.empty()) fail("{}: expected \"output\" to hold a text, found an empty list", where);
      // Released files have a few empty outputs: beside others they mean nothing, alone they leave the record empty.
      if (std::any_of(record.answers.begin(), record.answers.end(), not_blank)) {
        std::erase_if(record.answers, [](const std::string& answer) { return !not_blank(answer); });
      } else {
        record.answers = {""};
      }
      record.definition = facts.definition;
      record.category = facts.category;
      check_answers(record, where);
      sink.record(std::move(record));
    });
  }
}

}  // namespace flanmoe::formats
