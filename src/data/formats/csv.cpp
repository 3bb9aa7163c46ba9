#include "data/formats/csv.hpp"

namespace flanmoe::formats {

std::vector<std::string> csv_row(Input& input, std::string line, const std::string& where) {
  std::vector<std::string> fields(1);
  bool quoted = false;
  for (std::size_t i = 0;; ++i) {
    if (i >= line.size()) {
      if (!quoted) return fields;
      if (!input.line(line)) fail("{}: expected a quote that closes the field, found the end of the file", where);
      fields.back() += '\n';
      i = std::size_t(-1);
    } else if (quoted && line[i] == '"' && i + 1 < line.size() && line[i + 1] == '"') {
      fields.back() += line[i++];
    } else if (line[i] == '"' && (quoted || fields.back().empty())) {
      quoted = !quoted;
    } else if (line[i] == ',' && !quoted) {
      fields.emplace_back();
    } else {
      fields.back() += line[i];
    }
  }
}

}  // namespace flanmoe::formats
