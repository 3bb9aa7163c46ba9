// Plain text for pretraining: documents are paragraphs, or lines.
#include "data/formats/formats.hpp"
#include "data/text.hpp"

namespace flanmoe::formats {
namespace {

// A paragraph without an end is cut, so that memory stays bounded.
constexpr std::size_t kLongestDocument = std::size_t(1) << 20;

void add_document(const std::string& text, std::int64_t line, const Input& input, BadRecords& bad, const Sink& sink) {
  if (trim(text).empty()) return;
  bad.guard([&] {
    if (!is_utf8(text)) fail("{}: expected UTF-8, found \"{}\"", input.where(line), shown(text));
    Record record;
    record.key = std::to_string(line);
    record.question = record.question_as_written = std::string(trim(text));
    record.is_text = true;
    sink.record(std::move(record));
  });
}

}  // namespace

void read_text(Input& input, BadRecords& bad, const Sink& sink) {
  std::string line, document;
  std::int64_t first = 1;
  while (input.line(line)) {
    if (trim(line).empty() || document.size() + line.size() > kLongestDocument) {
      add_document(document, first, input, bad, sink);
      document.clear();
    }
    if (document.empty()) first = input.line_number();
    if (!trim(line).empty()) document.append(document.empty() ? "" : "\n").append(line);
  }
  add_document(document, first, input, bad, sink);
}

void read_text_lines(Input& input, BadRecords& bad, const Sink& sink) {
  for (std::string line; input.line(line);) add_document(line, input.line_number(), input, bad, sink);
}

}  // namespace flanmoe::formats
