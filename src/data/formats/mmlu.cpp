// MMLU: CSV (RFC 4180) without a header; question, four choices, letter of the right one.
#include "data/formats/csv.hpp"
#include "data/formats/formats.hpp"
#include "data/text.hpp"

namespace flanmoe::formats {
void read_mmlu(Input& input, BadRecords& bad, const Sink& sink) {
  constexpr std::size_t kChoices = 4;
  for (std::string line; input.line(line);) {
    const std::string where = input.where();
    if (trim(line).empty()) continue;
    bad.guard([&] {
      const std::vector<std::string> fields = csv_row(input, line, where);
      if (fields.size() != kChoices + 2) {
        fail("{}: expected 6 fields separated by commas, found {} in \"{}\"", where, fields.size(), shown(line));
      }
      for (const std::string& field : fields) {
        if (!is_utf8(field)) fail("{}: expected UTF-8, found \"{}\"", where, shown(field));
      }
      const std::string& letter = fields.back();
      if (letter.size() != 1 || letter[0] < 'A' || letter[0] > 'D') {
        fail("{}: expected the last field to be A, B, C or D, found \"{}\"", where, shown(letter));
      }
      Record record;
      record.key = where;
      record.question = record.question_as_written = fields[0];
      record.choices.assign(fields.begin() + 1, fields.begin() + 1 + std::ptrdiff_t(kChoices));
      record.labels = {"A", "B", "C", "D"};
      record.gold = letter[0] - 'A';
      record.answers = {letter};
      check_answers(record, where);
      sink.record(std::move(record));
    });
  }
}

}  // namespace flanmoe::formats
