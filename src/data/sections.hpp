// Files of "[name]" sections with "key = value" lines: templates, lists of sources.
#pragma once

#include <string>
#include <string_view>
#include <vector>

namespace flanmoe {

struct SectionEntry {
  std::string key, value;
  int line = 0;
};
struct Section {
  std::string name;
  int line = 0;
  std::vector<SectionEntry> entries;
};

/// The first section has no name: it holds the lines before the first "[name]". Lines that begin with # are comments;
/// "\n" in a value stands for a line end. Throws Error with path:line for a line of another form or without a value.
std::vector<Section> parse_sections(std::string_view text, const std::string& path);

}  // namespace flanmoe
