#include "data/sections.hpp"

#include "base/error.hpp"
#include "data/text.hpp"

namespace flanmoe {

std::vector<Section> parse_sections(std::string_view text, const std::string& path) {
  std::vector<Section> sections(1);
  int number = 0;
  for (const std::string& raw : split(text, '\n')) {
    const std::string where = fmt::format("{}:{}", path, ++number);
    const std::string_view line = trim(raw);
    if (line.empty() || line.front() == '#') continue;
    if (line.front() == '[') {
      if (line.back() != ']' || line.size() < 3) fail("{}: expected [name], found \"{}\"", where, line);
      sections.push_back({std::string(line.substr(1, line.size() - 2)), number, {}});
      continue;
    }
    const std::size_t equals = line.find('=');
    if (equals == std::string_view::npos) fail("{}: expected \"key = value\", found \"{}\"", where, line);
    const std::string key(trim(line.substr(0, equals)));
    const std::string value = replace_all(std::string(trim(line.substr(equals + 1))), "\\n", "\n");
    if (value.empty()) fail("{}: \"{}\" has no value", where, key);
    sections.back().entries.push_back({key, value, number});
  }
  return sections;
}

}  // namespace flanmoe
