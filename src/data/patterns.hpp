// Patterns of task names, and lists of words in deck values.
#pragma once

#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace flanmoe {

/// Whether the whole of `name` matches `pattern`, in which `*` stands for any text and `?` for any one byte.
bool matches_pattern(std::string_view pattern, std::string_view name);
bool matches_any(std::span<const std::string> patterns, std::string_view name);
/// The words of a deck value, which are separated by white space.
std::vector<std::string> split_words(const std::string& text);
/// Throws UsageError when a pattern of deck key `key` matches none of `names`; the message gives the nearest names.
void require_matches(const std::string& key, std::span<const std::string> patterns,
                     const std::vector<std::string>& names);
/// The files that a deck value of paths and globs stands for: in the order given, each once, the matches of a glob
/// sorted. Throws UsageError when a word matches no file.
std::vector<std::string> expand_paths(const std::string& key, const std::string& value);

}  // namespace flanmoe
