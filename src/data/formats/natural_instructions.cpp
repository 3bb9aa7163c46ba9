// Tasks of Super-NaturalInstructions: a definition, exemplars and instances in one JSON file.
#include "data/formats/formats.hpp"
#include "data/formats/json_text.hpp"
#include "data/text.hpp"

namespace flanmoe::formats {
namespace {

FileFacts facts_of(const Json& json, const std::string& where) {
  FileFacts facts;
  const auto definition = texts_member(json, "Definition", where);
  if (definition.empty()) fail("{}: expected \"Definition\" to hold a text, found an empty list", where);
  facts.definition = definition[0];
  const auto categories = texts_member(json, "Categories", where);
  if (!categories.empty()) facts.category = categories[0];
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
      record.definition = facts.definition;
      record.category = facts.category;
      sink.record(std::move(record));
    });
  }
}

}  // namespace flanmoe::formats
