// Tasks from apt's list of packages.
#include <algorithm>
#include <map>
#include <set>

#include "data/tutorial/items.hpp"

namespace flanmoe::tutorial {

namespace {

constexpr std::size_t kMostItems = 6000;

/// Packages with a name and a description of ordinary length.
std::vector<const Package*> ordinary_packages(const Sources& sources) {
  std::vector<const Package*> out;
  for (const auto& package : sources.packages) {
    const auto length = package.description.size();
    if (length >= 12 && length <= 80 && package.name.size() <= 30) out.push_back(&package);
  }
  return out;
}

std::vector<std::pair<std::string, std::string>> fields_of(const Package& package) {
  return {{"name", package.name}, {"description", package.description}};
}

/// Libraries come as families ("libfoo1", "libfoo-dev") with nearly the same description: a family is one key.
std::string family_of(const std::string& name) {
  std::string family = name;
  for (const char* prefix : {"golang-github-", "python3-", "ruby-", "librust-", "libghc-", "node-", "lib"}) {
    if (family.starts_with(prefix)) family.erase(0, std::string(prefix).size());
  }
  const std::size_t end = family.find_first_of("-0123456789.+");
  return end == std::string::npos || end < 3 ? family : family.substr(0, end);
}

/// Items with other packages' names or descriptions as wrong choices; one package per description.
Items naming_items(const Sources& sources, bool name_is_answer) {
  const auto packages = ordinary_packages(sources);
  std::vector<std::string> pool;
  for (const auto* package : packages) pool.push_back(name_is_answer ? package->name : package->description);
  Items items;
  std::set<std::string> descriptions;
  Random random("packages", name_is_answer);
  for (const auto* package : packages) {
    if (!descriptions.insert(package->description).second) continue;
    Item item{family_of(package->name), fields_of(*package), name_is_answer ? package->name : package->description, {}};
    draw_choices(item, pool, 3, random);
    items.push_back(std::move(item));
  }
  return limited(std::move(items), kMostItems);
}

}  // namespace

Items package_section(const Sources& sources) {
  static const std::vector<std::string> kSections = {"python", "perl",  "haskell", "rust", "java",  "javascript",
                                                     "doc",    "games", "science", "net",  "sound", "fonts"};
  Items items;
  for (const auto* package : ordinary_packages(sources)) {
    if (std::find(kSections.begin(), kSections.end(), package->section) == kSections.end()) continue;
    items.push_back({family_of(package->name), fields_of(*package), package->section, kSections});
  }
  return balanced(std::move(items), kMostItems / kSections.size());
}

Items package_for_description(const Sources& sources) { return naming_items(sources, true); }
Items describe_package(const Sources& sources) { return naming_items(sources, false); }

Items package_role(const Sources& sources) {
  static const std::map<std::string, std::string> kRoles = {{"program", "program"},
                                                            {"shared-lib", "library"},
                                                            {"devel-lib", "development files"},
                                                            {"documentation", "documentation"},
                                                            {"plugin", "plugin"},
                                                            {"app-data", "data files"}};
  std::vector<std::string> labels;
  for (const auto& [tag, label] : kRoles) labels.push_back(label);
  Items items;
  for (const auto* package : ordinary_packages(sources)) {
    const auto role = kRoles.find(package->tag("role"));
    if (role == kRoles.end()) continue;
    items.push_back({family_of(package->name), fields_of(*package), role->second, labels});
  }
  return balanced(std::move(items), kMostItems / labels.size());
}

}  // namespace flanmoe::tutorial
