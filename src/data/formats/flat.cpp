// Flat dumps of the FLAN collection: JSON lines of ready prompts.
#include "data/formats/formats.hpp"
#include "data/formats/json_text.hpp"
#include "data/text.hpp"

namespace flanmoe::formats {
namespace {

constexpr std::size_t kLongestName = 512;

std::string name_member(const Json& json, const char* key, const std::string& where) {
  const std::string name = text_member(json, key, where);
  if (name.empty() || name.size() > kLongestName || name.find('\0') != std::string::npos) {
    fail("{}: expected \"{}\" to be a name of 1 to {} bytes, found \"{}\"", where, key, kLongestName, shown(name));
  }
  return name;
}

/// The dumps' short names of variants, as this program calls them.
std::string variant_of(const std::string& type) {
  if (type == "zs_opt") return "zero_shot";
  if (type == "zs_noopt") return "zero_shot_no_options";
  if (type == "fs_opt") return "few_shot";
  if (type == "fs_noopt") return "few_shot_no_options";
  return type;
}

}  // namespace

void read_flat(Input& input, BadRecords& bad, const Sink& sink) {
  for (std::string line; input.line(line);) {
    if (trim(line).empty()) continue;
    bad.guard([&] {
      const Json json = parse_object_line(line, input.where());
      Record record;
      record.key = std::to_string(input.line_number());
      record.question = record.question_as_written = text_member(json, "inputs", input.where());
      record.answers = {text_member(json, "targets", input.where())};
      record.task = name_member(json, "task_name", input.where());
      record.variant = variant_of(name_member(json, "template_type", input.where()));
      if (json.contains("task_source")) record.category = name_member(json, "task_source", input.where());
      check_answers(record, input.where());
      sink.record(std::move(record));
    });
  }
}

}  // namespace flanmoe::formats
