// StrategyQA as released: yes-or-no questions with the facts that lead to the answer.
#include "data/formats/formats.hpp"
#include "data/formats/json_text.hpp"
#include "data/text.hpp"

namespace flanmoe::formats {

void read_strategyqa(Input& input, BadRecords& bad, const Sink& sink) {
  const JsonFile file = parse_json_file(input, "");
  const Json& list = list_of(file, "", input.name());
  for (std::size_t i = 0; i < list.size(); ++i) {
    bad.guard([&] {
      const std::string where = input.where(file.lines[i]);
      const Json& answer = member(list[i], "answer", where);
      if (!answer.is_boolean())
        fail("{}: expected \"answer\" to be true or false, found {}", where, shown(answer.dump(-1, ' ', true)));
      Record record;
      record.key = text_member(list[i], "qid", where);
      record.question = record.question_as_written = text_member(list[i], "question", where);
      record.choices = {"yes", "no"};
      record.labels.resize(2);
      record.gold = answer.get<bool>() ? 0 : 1;
      record.answers = {record.choices[std::size_t(record.gold)]};
      for (const std::string& fact : texts_member(list[i], "facts", where)) {
        const std::string_view text = trim(fact);
        if (!text.empty()) record.rationale.append(record.rationale.empty() ? "" : " ").append(text);
      }
      sink.record(std::move(record));
    });
  }
}

}  // namespace flanmoe::formats
