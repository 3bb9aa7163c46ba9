// GSM8K: problems whose answer holds the steps, calculator marks and "#### result".
#include "data/formats/formats.hpp"
#include "data/formats/json_text.hpp"
#include "data/text.hpp"

namespace flanmoe::formats {
namespace {

/// Without the <<48/2=24>> marks.
std::string without_marks(const std::string& steps) {
  std::string out;
  for (std::size_t at = 0; at < steps.size();) {
    const std::size_t open = steps.find("<<", at);
    const std::size_t close = open == std::string::npos ? open : steps.find(">>", open);
    out.append(steps, at, close == std::string::npos ? std::string::npos : open - at);
    if (close == std::string::npos) break;
    at = close + 2;
  }
  return out;
}

bool is_number(std::string_view text) {
  if (text.starts_with('-')) text.remove_prefix(1);
  return !text.empty() && text.find_first_not_of("0123456789.") == std::string_view::npos &&
         text.find_first_of("0123456789") != std::string_view::npos;
}

}  // namespace

void read_gsm8k(Input& input, BadRecords& bad, const Sink& sink) {
  for (std::string line; input.line(line);) {
    if (trim(line).empty()) continue;
    bad.guard([&] {
      const Json json = parse_object_line(line, input.where());
      const std::string answer = text_member(json, "answer", input.where());
      const std::size_t mark = answer.rfind("#### ");
      const std::string result =
          mark == std::string::npos
              ? ""
              : replace_all(std::string(trim(std::string_view(answer).substr(mark + 5))), ",", "");
      if (!is_number(result)) {
        fail("{}: expected \"answer\" to end with \"#### NUMBER\", found \"{}\"", input.where(), shown(answer));
      }
      Record record;
      record.key = std::to_string(input.line_number());
      record.question = record.question_as_written = text_member(json, "question", input.where());
      record.answers = {result};
      record.rationale = std::string(trim(without_marks(answer.substr(0, mark))));
      sink.record(std::move(record));
    });
  }
}

}  // namespace flanmoe::formats
