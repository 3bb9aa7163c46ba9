// The list of packages that apt holds: names, one-line descriptions, sections and tags.
#pragma once

#include <string>
#include <string_view>
#include <vector>

namespace flanmoe::tutorial {

struct Package {
  std::string name, description, section;
  std::vector<std::string> tags;  // "role::program"
  /// Value of the first tag of a facet ("role"), "" when there is none.
  std::string tag(std::string_view facet) const;
};

/// Stanzas of "Key: value" lines; lines that start with a blank continue the value. Each name is kept once. Throws
/// Error with `name`:line for a line that is neither.
std::vector<Package> parse_packages(std::string_view text, const std::string& name);

/// Text of `apt-cache dumpavail`. Throws Error with what to do when apt holds no list.
std::string dump_package_list();

}  // namespace flanmoe::tutorial
