// ASDiv: word problems in XML.
#include <algorithm>
#include <pugixml.hpp>

#include "data/formats/formats.hpp"
#include "data/text.hpp"

namespace flanmoe::formats {
namespace {

/// Lines of byte offsets that ascend.
class LineOfOffset {
 public:
  explicit LineOfOffset(const std::string& text) : text_(text) {}
  std::int64_t operator()(std::ptrdiff_t offset) {
    const auto end = std::min(std::size_t(std::max<std::ptrdiff_t>(offset, 0)), text_.size());
    if (end > at_) line_ += std::count(text_.begin() + std::ptrdiff_t(at_), text_.begin() + std::ptrdiff_t(end), '\n');
    at_ = std::max(at_, end);
    return line_;
  }

 private:
  const std::string& text_;
  std::size_t at_ = 0;
  std::int64_t line_ = 1;
};

std::string child_text(const pugi::xml_node& problem, const char* name, const std::string& where) {
  const pugi::xml_node child = problem.child(name);
  const std::string text(trim(child.text().get()));
  if (!child || text.empty()) fail("{}: expected <{}> with a text in <Problem>, found none", where, name);
  if (!is_utf8(text)) fail("{}: expected <{}> in UTF-8, found \"{}\"", where, name, shown(text));
  return text;
}

/// "9 (apples)" is asked for as 9; an answer with several values stays as it is.
std::string without_unit(const std::string& answer) {
  const std::size_t open = answer.find('(');
  const std::string_view value = trim(std::string_view(answer).substr(0, open));
  const bool one_unit = open != std::string::npos && !value.empty() && answer.find(')') == answer.size() - 1;
  return one_unit ? std::string(value) : answer;
}

}  // namespace

void read_asdiv(Input& input, BadRecords& bad, const Sink& sink) {
  const std::string text = input.rest();
  LineOfOffset line_of(text);
  pugi::xml_document document;
  const pugi::xml_parse_result parsed =
      document.load_buffer(text.data(), text.size(), pugi::parse_default, pugi::encoding_utf8);
  if (!parsed) fail("{}: expected XML, found: {}", input.where(line_of(parsed.offset)), parsed.description());
  const pugi::xml_node problems = document.child("Machine-Reading-Corpus-File").child("ProblemSet");
  if (!problems)
    fail("{}: expected <Machine-Reading-Corpus-File> with <ProblemSet>, found <{}>", input.name(),
         shown(document.first_child().name()));
  for (const pugi::xml_node& problem : problems.children("Problem")) {
    const std::string where = input.where(line_of(problem.offset_debug()));
    bad.guard([&] {
      Record record;
      record.key = problem.attribute("ID").value();
      if (record.key.empty()) fail("{}: expected <Problem> to have an ID, found none", where);
      record.question = record.question_as_written =
          child_text(problem, "Body", where) + " " + child_text(problem, "Question", where);
      record.answers = {without_unit(child_text(problem, "Answer", where))};
      sink.record(std::move(record));
    });
  }
}

}  // namespace flanmoe::formats
