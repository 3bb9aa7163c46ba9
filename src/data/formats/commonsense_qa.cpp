// CommonsenseQA as released: a stem with five labelled choices.
#include "data/formats/formats.hpp"
#include "data/formats/json_text.hpp"
#include "data/text.hpp"

namespace flanmoe::formats {

void read_commonsense_qa(Input& input, BadRecords& bad, const Sink& sink) {
  for (std::string line; input.line(line);) {
    if (trim(line).empty()) continue;
    bad.guard([&] {
      const std::string where = input.where();
      const Json json = parse_object_line(line, where);
      const Json& question = member(json, "question", where);
      const Json& choices = member(question, "choices", where);
      if (!choices.is_array() || choices.size() < 2) fail("{}: expected \"choices\" to be a list of 2 or more", where);
      const std::string right = text_member(json, "answerKey", where);
      Record record;
      record.key = text_member(json, "id", where);
      record.question = record.question_as_written = text_member(question, "stem", where);
      for (const Json& choice : choices) {
        const std::string label = text_member(choice, "label", where);
        if (label == right) record.gold = std::int32_t(record.choices.size());
        record.labels.push_back(label);
        record.choices.push_back(text_member(choice, "text", where));
      }
      if (record.gold < 0)
        fail("{}: expected \"answerKey\" to be a label of a choice, found \"{}\"", where, shown(right));
      record.answers = {record.choices[std::size_t(record.gold)]};
      check_answers(record, where);
      sink.record(std::move(record));
    });
  }
}

}  // namespace flanmoe::formats
