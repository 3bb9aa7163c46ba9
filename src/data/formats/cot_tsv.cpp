// Chain-of-thought tasks of the FLAN collection: question, answer, rationale; "\n" stands for a line end.
#include "data/formats/formats.hpp"
#include "data/text.hpp"

namespace flanmoe::formats {

void read_cot_tsv(Input& input, BadRecords& bad, const Sink& sink) {
  for (std::string line; input.line(line);) {
    bad.guard([&] {
      if (!is_utf8(line)) fail("{}: expected UTF-8, found \"{}\"", input.where(), shown(line));
      std::vector<std::string> columns = split(line, '\t');
      if (columns.size() != 3) {
        fail("{}: expected 3 columns separated by tabs, found {} in \"{}\"", input.where(), columns.size(),
             shown(line));
      }
      for (std::string& column : columns) column = std::string(trim(replace_all(column, "\\n", "\n")));
      if (columns[0].empty() || columns[1].empty()) {
        fail("{}: expected a question and an answer, found an empty one in \"{}\"", input.where(), shown(line));
      }
      Record record;
      record.key = std::to_string(input.line_number());
      record.question_as_written = columns[0];
      record.answers = {columns[1]};
      record.rationale = columns[2];
      separate_choices(record);
      record.gold = choice_of(record, columns[1]);
      if (record.gold < 0) {  // a list that does not hold the answer is part of the question
        record.question = record.question_as_written;
        record.choices.clear();
        record.labels.clear();
      }
      check_answers(record, input.where());
      sink.record(std::move(record));
    });
  }
}

}  // namespace flanmoe::formats
