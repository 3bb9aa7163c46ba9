#include "data/text.hpp"

#include <fmt/format.h>
#include <zlib.h>

#include <algorithm>
#include <array>
#include <cstring>
#include <memory>

#include "base/error.hpp"

namespace flanmoe {

namespace {

bool is_space(char c) { return c == ' ' || c == '\t' || c == '\n' || c == '\r' || c == '\f' || c == '\v'; }

/// Length of the UTF-8 sequence at `i`, 0 when it is malformed.
std::size_t utf8_length(std::string_view text, std::size_t i) {
  const auto lead = static_cast<unsigned char>(text[i]);
  const std::size_t length = lead < 0x80   ? 1
                             : lead < 0xC2 ? 0
                             : lead < 0xE0 ? 2
                             : lead < 0xF0 ? 3
                             : lead < 0xF5 ? 4
                                           : 0;
  if (length == 0 || i + length > text.size()) return 0;
  for (std::size_t k = 1; k < length; ++k) {
    if ((static_cast<unsigned char>(text[i + k]) & 0xC0) != 0x80) return 0;
  }
  const auto second = length > 1 ? static_cast<unsigned char>(text[i + 1]) : 0;
  const bool overlong = (lead == 0xE0 && second < 0xA0) || (lead == 0xF0 && second < 0x90);
  const bool outside = (lead == 0xED && second >= 0xA0) || (lead == 0xF4 && second >= 0x90);
  return overlong || outside ? 0 : length;
}

std::string from_windows_1252(unsigned char byte) {
  switch (byte) {
    case 0x91:
    case 0x92: return "'";
    case 0x93:
    case 0x94: return "\"";
    case 0x96:
    case 0x97: return "-";
    default: break;
  }
  if (byte < 0xA0) return " ";
  return {char(0xC0 | (byte >> 6)), char(0x80 | (byte & 0x3F))};
}

}  // namespace

std::string read_whole_file(const std::string& path) {
  const std::unique_ptr<gzFile_s, int (*)(gzFile)> file(gzopen(path.c_str(), "rb"), gzclose);
  if (!file) fail("{}: cannot open for reading", path);
  std::string bytes;
  std::array<char, 1 << 16> buffer;
  int count = 0;
  while ((count = gzread(file.get(), buffer.data(), unsigned(buffer.size()))) > 0)
    bytes.append(buffer.data(), std::size_t(count));
  int status = Z_OK;
  const char* message = gzerror(file.get(), &status);
  if (count < 0 || (status != Z_OK && status != Z_STREAM_END)) {
    fail("{}: damaged near byte {} of the uncompressed text: {}", path, bytes.size(), message);
  }
  return bytes;
}

std::string_view trim(std::string_view text) {
  while (!text.empty() && is_space(text.front())) text.remove_prefix(1);
  while (!text.empty() && is_space(text.back())) text.remove_suffix(1);
  return text;
}

std::string collapse_spaces(std::string_view text) {
  std::string out;
  out.reserve(text.size());
  for (const char c : trim(text)) {
    if (!is_space(c)) {
      out += c;
    } else if (out.back() != ' ') {
      out += ' ';
    }
  }
  return out;
}

std::vector<std::string> split(std::string_view text, char separator) {
  std::vector<std::string> parts;
  for (std::size_t begin = 0;;) {
    const std::size_t end = text.find(separator, begin);
    parts.emplace_back(text.substr(begin, end - begin));
    if (end == std::string_view::npos) return parts;
    begin = end + 1;
  }
}

std::string replace_all(std::string text, std::string_view from, std::string_view to) {
  for (std::size_t at = text.find(from); at != std::string::npos; at = text.find(from, at + to.size())) {
    text.replace(at, from.size(), to);
  }
  return text;
}

std::string lower_ascii(std::string_view text) {
  std::string out(text);
  for (char& c : out) {
    if (c >= 'A' && c <= 'Z') c = char(c - 'A' + 'a');
  }
  return out;
}

std::string without_groups(std::string_view text, char open, char close) {
  std::string out;
  for (std::size_t i = 0; i < text.size(); ++i) {
    const std::size_t end = text[i] == open ? text.find(close, i + 1) : std::string_view::npos;
    if (end == std::string_view::npos) {
      out += text[i];
    } else {
      i = end;
    }
  }
  return out;
}

bool is_plain_word(std::string_view text) {
  return text.size() >= 3 && std::all_of(text.begin(), text.end(), [](char c) { return c >= 'a' && c <= 'z'; });
}

std::string with_article(std::string_view word) {
  const bool vowel = !word.empty() && std::string_view("aeiouAEIOU").find(word.front()) != std::string_view::npos;
  return (vowel ? "an " : "a ") + std::string(word);
}

std::int64_t character_count(std::string_view text) {
  return std::count_if(text.begin(), text.end(), [](char c) { return (static_cast<unsigned char>(c) & 0xC0) != 0x80; });
}

bool is_utf8(std::string_view text) {
  for (std::size_t i = 0; i < text.size();) {
    // Eight bytes of ASCII at a time.
    std::uint64_t bytes = 0;
    while (i + sizeof(bytes) <= text.size()) {
      std::memcpy(&bytes, text.data() + i, sizeof(bytes));
      if ((bytes & 0x8080808080808080ULL) != 0) break;
      i += sizeof(bytes);
    }
    if (i == text.size()) break;
    const std::size_t length = utf8_length(text, i);
    if (length == 0) return false;
    i += length;
  }
  return true;
}

std::string repaired_utf8(std::string_view text, std::int64_t& repaired) {
  std::string out;
  out.reserve(text.size());
  for (std::size_t i = 0; i < text.size();) {
    const std::size_t length = utf8_length(text, i);
    if (length == 0) {
      out += from_windows_1252(static_cast<unsigned char>(text[i++]));
      ++repaired;
    } else {
      out.append(text, i, length);
      i += length;
    }
  }
  return out;
}

std::string shortened(std::string_view text, std::size_t limit) {
  if (text.size() <= limit) return std::string(text);
  const std::string_view head = text.substr(0, limit);
  const std::size_t sentence = head.rfind(". ");
  if (sentence != std::string_view::npos && sentence > limit / 3) return std::string(head.substr(0, sentence + 1));
  const std::size_t word = head.rfind(' ');
  return std::string(head.substr(0, word == std::string_view::npos ? 0 : word));
}

std::uint64_t hash_text(std::string_view text, std::uint64_t seed) {
  std::uint64_t hash = 0xCBF29CE484222325ULL ^ (seed * 0x9E3779B97F4A7C15ULL);
  for (const char c : text) hash = (hash ^ static_cast<unsigned char>(c)) * 0x100000001B3ULL;  // FNV-1a
  return Random(hash).next();  // FNV alone mixes its low bits badly
}

std::string crc32_hex(std::string_view bytes) {
  uLong crc = crc32(0L, Z_NULL, 0);
  for (std::size_t i = 0; i < bytes.size(); i += 1U << 30) {
    const std::string_view part = bytes.substr(i, 1U << 30);
    crc = crc32(crc, reinterpret_cast<const Bytef*>(part.data()), uInt(part.size()));
  }
  return fmt::format("{:08x}", std::uint32_t(crc));
}

std::uint64_t Random::next() {
  std::uint64_t z = (state_ += 0x9E3779B97F4A7C15ULL);
  z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9ULL;
  z = (z ^ (z >> 27)) * 0x94D049BB133111EBULL;
  return z ^ (z >> 31);
}

std::int64_t Random::below(std::int64_t n) {
  FLANMOE_EXPECT(n > 0, "a number below {}", n);
  return std::int64_t(next() % std::uint64_t(n));  // n is tiny against 2^64: the bias is below 1e-12
}

}  // namespace flanmoe
