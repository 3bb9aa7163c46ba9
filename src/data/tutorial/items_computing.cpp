// Tasks from the computing dictionary.
#include <algorithm>
#include <map>
#include <set>

#include "data/tutorial/items.hpp"

namespace flanmoe::tutorial {

Items expand_acronym(const Sources& sources) {
  const auto known = acronyms(sources.foldoc);
  std::multimap<std::string, std::string> expansions;
  std::vector<std::string> pool;
  for (const auto& acronym : known) {
    expansions.emplace(acronym.letters, acronym.expansion);
    pool.push_back(acronym.expansion);
  }
  Items items;
  Random random("expand_acronym", 0);
  std::set<std::string> done;
  for (const auto& [letters, expansion] : known) {
    if (!done.insert(letters).second) continue;  // the first meaning is the usual one
    Item item{letters, {{"acronym", letters}}, expansion, {}};
    const auto [begin, end] = expansions.equal_range(letters);
    draw_choices(item, pool, 3, random, [&, first = begin, last = end](const std::string& text) {
      return std::any_of(first, last, [&](const auto& entry) { return entry.second == text; });
    });
    items.push_back(std::move(item));
  }
  return items;
}

namespace {

bool is_term_name(const std::string& name) {
  return name.size() >= 3 && name.size() <= 24 && std::all_of(name.begin(), name.end(), [](char c) {
           return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || c == ' ' || c == '-';
         });
}

}  // namespace

Items computing_subject(const Sources& sources) {
  static const std::vector<std::string> kSubjects = {"language",         "networking", "programming", "hardware",
                                                     "operating system", "company",    "mathematics", "storage"};
  Items items;
  for (const auto& term : computing_terms(sources.foldoc)) {
    const std::string definition = short_definition(term);
    if (std::find(kSubjects.begin(), kSubjects.end(), term.subject) == kSubjects.end() || definition.empty()) continue;
    items.push_back({term.name, {{"term", term.name}, {"definition", definition}}, term.subject, kSubjects});
  }
  // The subjects are kept as frequent as they are: the rarest has too few entries to balance them.
  return items;
}

Items computing_term(const Sources& sources) {
  std::vector<std::pair<std::string, std::string>> defined;
  std::vector<std::string> pool;
  for (const auto& term : computing_terms(sources.foldoc)) {
    const std::string definition = short_definition(term);
    if (definition.empty() || !is_term_name(term.name)) continue;
    if (lower_ascii(definition).find(lower_ascii(term.name)) != std::string::npos) continue;
    defined.emplace_back(term.name, definition);
    pool.push_back(term.name);
  }
  Items items;
  Random random("computing_term", 0);
  for (const auto& [name, definition] : defined) {
    Item item{name, {{"definition", definition}}, name, {}};
    draw_choices(item, pool, 3, random);
    items.push_back(std::move(item));
  }
  return items;
}

}  // namespace flanmoe::tutorial
