// Small helpers for plain text, and the keyed hash that every choice of prompts and splits comes from.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace flanmoe {

/// Bytes of a file, gunzipped when it is compressed. Throws Error naming the file.
std::string read_whole_file(const std::string& path);

std::string_view trim(std::string_view text);
/// Runs of white space become one blank; none is left at the ends.
std::string collapse_spaces(std::string_view text);
std::vector<std::string> split(std::string_view text, char separator);
std::string replace_all(std::string text, std::string_view from, std::string_view to);
std::string lower_ascii(std::string_view text);
/// Removes every `open ... close` group (one level) together with its marks.
std::string without_groups(std::string_view text, char open, char close);
/// Three or more letters a-z and nothing else.
bool is_plain_word(std::string_view text);
/// "a" or "an" in front of an English word, by its first letter.
std::string with_article(std::string_view word);
/// Number of characters (code points) of UTF-8 text.
std::int64_t character_count(std::string_view text);
bool is_utf8(std::string_view text);
/// The text itself when it is UTF-8; otherwise each stray byte is read as Windows-1252 (quotes and dashes become ASCII)
/// and counted in `repaired`.
std::string repaired_utf8(std::string_view text, std::int64_t& repaired);
/// Cuts after the last whole sentence, or word, that fits into `limit` bytes.
std::string shortened(std::string_view text, std::size_t limit);

std::uint64_t hash_text(std::string_view text, std::uint64_t seed = 0);
std::string crc32_hex(std::string_view bytes);

/// Random numbers that are the same on every machine (SplitMix64).
class Random {
 public:
  explicit Random(std::uint64_t seed) : state_(seed) {}
  Random(std::string_view purpose, std::uint64_t seed) : state_(hash_text(purpose, seed)) {}
  std::uint64_t next();
  std::int64_t below(std::int64_t n);                          // 0 .. n-1
  std::int64_t between(std::int64_t low, std::int64_t high) {  // both included
    return low + below(high - low + 1);
  }
  template <class T>
  const T& pick(const std::vector<T>& from) {
    return from[std::size_t(below(std::int64_t(from.size())))];
  }
  template <class T>
  void shuffle(std::vector<T>& items) {
    for (std::size_t i = items.size(); i > 1; --i) std::swap(items[i - 1], items[std::size_t(below(std::int64_t(i)))]);
  }

 private:
  std::uint64_t state_;
};

}  // namespace flanmoe
