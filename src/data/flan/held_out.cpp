#include "data/flan/held_out.hpp"

#include <algorithm>

#include "data/patterns.hpp"
#include "data/text.hpp"

namespace flanmoe::flan {
namespace {

constexpr std::size_t kEnoughWords = 8;

bool is_long(std::string_view text) { return split_words(std::string(text)).size() >= kEnoughWords; }

std::uint64_t hash_question(const formats::Record& record) {
  std::string text = essence(record.question);
  if (!is_long(record.question)) {
    std::vector<std::string> choices;
    for (const std::string& choice : record.choices) choices.push_back(essence(choice));
    std::sort(choices.begin(), choices.end());
    for (const std::string& choice : choices) text.append("/").append(choice);
    text.append("/").append(essence(record.context));
  }
  return hash_text(text, 5);
}

}  // namespace

HeldOutList parse_held_out(std::string_view text, const std::string& path) {
  HeldOutList list;
  int number = 0;
  for (const std::string& line : split(text, '\n')) {
    const std::string where = fmt::format("{}:{}", path, ++number);
    const std::vector<std::string> words = split_words(line);
    if (words.empty() || words[0].starts_with('#')) continue;
    if (words[0] == "task" && words.size() >= 2) {
      list.tasks.insert(list.tasks.end(), words.begin() + 1, words.end());
    } else if (words[0] == "file" && words.size() == 3) {
      list.files.push_back({formats::find_format(words[1], where).name, words[2], where});
    } else {
      usage_fail("{}: expected \"task PATTERN...\" or \"file FORMAT PATH\", found \"{}\"", where, formats::shown(line));
    }
  }
  return list;
}

std::string essence(std::string_view text) {
  std::string out;
  for (const char c : lower_ascii(text)) {
    const bool kept = (c >= 'a' && c <= 'z') || (c >= '0' && c <= '9') || static_cast<unsigned char>(c) >= 0x80;
    if (kept) out += c;
  }
  return out;
}

void HeldOutQuestions::add(const std::vector<formats::Record>& records) {
  for (const formats::Record& record : records) hashes_.insert(hash_question(record));
}

bool HeldOutQuestions::contains(const formats::Record& record) const {
  if (hashes_.empty()) return false;
  if (hashes_.contains(hash_question(record))) return true;
  for (const std::string& line : split(record.question, '\n')) {
    if (is_long(line) && hashes_.contains(hash_text(essence(line), 5))) return true;
  }
  return false;
}

}  // namespace flanmoe::flan
