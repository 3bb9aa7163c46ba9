#include "data/patterns.hpp"

#include <fmt/ranges.h>
#include <glob.h>

#include <algorithm>
#include <sstream>

#include "base/error.hpp"
#include "deck/table.hpp"

namespace flanmoe {
namespace {

std::vector<std::string> nearest(const std::string& wrong, std::vector<std::string> names, std::size_t count) {
  std::vector<std::string> found;
  while (found.size() < count && !names.empty()) {
    found.push_back(deck_detail::nearest_name(wrong, names));
    std::erase(names, found.back());
  }
  return found;
}

}  // namespace

bool matches_pattern(std::string_view pattern, std::string_view name) {
  std::size_t p = 0, n = 0, star = std::string_view::npos, resume = 0;
  while (n < name.size()) {
    if (p < pattern.size() && pattern[p] == '*') {
      star = p++;
      resume = n;
    } else if (p < pattern.size() && (pattern[p] == '?' || pattern[p] == name[n])) {
      ++p;
      ++n;
    } else if (star != std::string_view::npos) {
      // Let the last star take one byte more and try again from there.
      p = star + 1;
      n = ++resume;
    } else {
      return false;
    }
  }
  return pattern.find_first_not_of('*', p) == std::string_view::npos;
}

bool matches_any(std::span<const std::string> patterns, std::string_view name) {
  return std::any_of(patterns.begin(), patterns.end(),
                     [&](const std::string& pattern) { return matches_pattern(pattern, name); });
}

std::vector<std::string> split_words(const std::string& text) {
  std::istringstream in(text);
  std::vector<std::string> words;
  for (std::string word; in >> word;) words.push_back(word);
  return words;
}

void require_matches(const std::string& key, std::span<const std::string> patterns,
                     const std::vector<std::string>& names) {
  for (const std::string& pattern : patterns) {
    const bool found = std::any_of(names.begin(), names.end(),
                                   [&](const std::string& name) { return matches_pattern(pattern, name); });
    if (!found) {
      usage_fail("{}: '{}' matches none of the {} tasks; nearest: {}", key, pattern, names.size(),
                 fmt::join(nearest(pattern, names, 3), ", "));
    }
  }
}

std::vector<std::string> expand_paths(const std::string& key, const std::string& value) {
  std::vector<std::string> paths;
  for (const std::string& word : split_words(value)) {
    glob_t found{};
    const int status = ::glob(word.c_str(), 0, nullptr, &found);
    const std::vector<std::string> matches(found.gl_pathv, found.gl_pathv + (status == 0 ? found.gl_pathc : 0));
    ::globfree(&found);
    if (matches.empty()) usage_fail("{}: no file matches '{}'", key, word);
    for (const std::string& path : matches) {
      if (std::find(paths.begin(), paths.end(), path) == paths.end()) paths.push_back(path);
    }
  }
  if (paths.empty()) usage_fail("{}: no shard is given", key);
  return paths;
}

}  // namespace flanmoe
