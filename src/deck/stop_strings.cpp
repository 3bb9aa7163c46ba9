// The list of texts in evaluate.stop.
#include "base/error.hpp"
#include "deck/deck.hpp"

namespace flanmoe {

std::vector<std::string> stop_strings(const EvaluateDeck& evaluate) {
  const std::string& text = evaluate.stop;
  std::vector<std::string> all;
  if (text.empty()) return all;
  all.emplace_back();
  for (std::size_t i = 0; i < text.size(); ++i) {
    if (text[i] == '|') {
      all.emplace_back();
    } else if (text[i] != '\\') {
      all.back() += text[i];
    } else {
      const char escaped = i + 1 < text.size() ? text[++i] : ' ';
      switch (escaped) {
        case 'n': all.back() += '\n'; break;
        case 't': all.back() += '\t'; break;
        case '|':
        case '\\': all.back() += escaped; break;
        default:
          usage_fail(R"(evaluate.stop: expected \n, \t, \| or \\ behind a backslash, found '{}' in '{}')", escaped,
                     text);
      }
    }
  }
  for (const std::string& stop : all) {
    if (stop.empty()) usage_fail("evaluate.stop: expected texts separated by |, found an empty one in '{}'", text);
  }
  return all;
}

}  // namespace flanmoe
