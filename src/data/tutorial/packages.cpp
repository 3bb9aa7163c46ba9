#include "data/tutorial/packages.hpp"

#include <array>
#include <cstdio>
#include <unordered_set>

#include "base/error.hpp"
#include "data/text.hpp"

namespace flanmoe::tutorial {

std::string Package::tag(std::string_view facet) const {
  for (const auto& tag : tags) {
    if (tag.starts_with(facet) && tag.substr(facet.size()).starts_with("::")) return tag.substr(facet.size() + 2);
  }
  return "";
}

std::vector<Package> parse_packages(std::string_view text, const std::string& name) {
  std::vector<Package> packages;
  std::unordered_set<std::string> names;
  Package package;
  std::string tags;
  std::string* continued = nullptr;  // the value that a line starting with a blank goes on with
  std::string ignored;
  const auto finish = [&] {
    for (const auto& tag : split(tags, ',')) {
      if (const auto clean = trim(tag); !clean.empty()) package.tags.emplace_back(clean);
    }
    package.section = package.section.substr(package.section.rfind('/') + 1);  // "non-free/net" is "net" here
    if (!package.name.empty() && names.insert(package.name).second) packages.push_back(std::move(package));
    package = {};
    tags.clear();
    continued = nullptr;
  };
  std::int64_t number = 0;
  for (std::size_t begin = 0; begin < text.size();) {
    const std::size_t end = std::min(text.find('\n', begin), text.size());
    const std::string_view line = text.substr(begin, end - begin);
    begin = end + 1;
    ++number;
    if (line.empty()) {
      finish();
    } else if (line.front() == ' ' || line.front() == '\t') {
      if (continued == nullptr) fail("{}:{}: a continued line without a key before it: \"{}\"", name, number, line);
      if (continued == &tags) tags.append(line);
    } else {
      const std::size_t colon = line.find(':');
      if (colon == std::string_view::npos) fail("{}:{}: expected \"Key: value\", found \"{}\"", name, number, line);
      const std::string_view key = line.substr(0, colon), value = trim(line.substr(colon + 1));
      continued = key == "Package"       ? &package.name
                  : key == "Section"     ? &package.section
                  : key == "Description" ? &package.description
                  : key == "Tag"         ? &tags
                                         : &ignored;
      if (continued != &ignored) *continued = std::string(value);
    }
  }
  finish();
  return packages;
}

std::string dump_package_list() {
  std::string text;
  FILE* pipe = popen("LC_ALL=C apt-cache dumpavail 2>/dev/null", "r");
  if (pipe == nullptr) fail("apt-cache dumpavail: cannot be started");
  std::array<char, 1 << 16> buffer;
  std::size_t count = 0;
  while ((count = fread(buffer.data(), 1, buffer.size(), pipe)) > 0) text.append(buffer.data(), count);
  const int status = pclose(pipe);
  // An apt that never updated lists only what is installed: a few hundred stanzas, under a megabyte.
  if (status != 0 || text.size() < 5'000'000) {
    fail(
        "apt-cache dumpavail: exit status {}, {} bytes; the package list of a Debian mirror is missing: run \"apt-get "
        "update\" as root and start again",
        status, text.size());
  }
  return text;
}

}  // namespace flanmoe::tutorial
