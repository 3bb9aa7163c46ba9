#include "data/tutorial/dictd.hpp"

#include <algorithm>
#include <array>

#include "base/error.hpp"
#include "base/log.hpp"
#include "data/text.hpp"

namespace flanmoe::tutorial {

std::int64_t parse_base64_number(std::string_view digits) {
  constexpr std::string_view kDigits = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
  if (digits.empty() || digits.size() > 10) return -1;  // 60 bits
  std::int64_t value = 0;
  for (const char c : digits) {
    const std::size_t digit = kDigits.find(c);
    if (digit == std::string_view::npos) return -1;
    value = value * 64 + std::int64_t(digit);
  }
  return value;
}

std::vector<DictEntry> parse_dictd(std::string_view index, const std::string& index_name, std::string_view text,
                                   const std::string& text_name) {
  std::vector<DictEntry> entries;
  std::int64_t line_number = 0, repaired = 0;
  for (const std::string& line : split(index, '\n')) {
    ++line_number;
    if (line.empty()) continue;
    const auto fields = split(line, '\t');
    if (fields.size() < 3) {
      fail("{}:{}: expected headword, offset and length between tabs, found \"{}\"", index_name, line_number, line);
    }
    const std::int64_t offset = parse_base64_number(fields[1]), length = parse_base64_number(fields[2]);
    if (offset < 0 || length < 0) {
      fail("{}:{}: offset \"{}\" and length \"{}\" are not both base-64 numbers", index_name, line_number, fields[1],
           fields[2]);
    }
    if (offset + length > std::int64_t(text.size())) {
      fail("{}:{}: \"{}\" is said to be at bytes {} to {}, but {} has {} bytes", index_name, line_number, fields[0],
           offset, offset + length, text_name, text.size());
    }
    if (fields[0].starts_with("00-database") || fields[0].starts_with("00database")) continue;
    entries.push_back({repaired_utf8(fields[0], repaired),
                       repaired_utf8(text.substr(std::size_t(offset), std::size_t(length)), repaired)});
  }
  if (repaired > 0) log_info("  {}: {} bytes were not UTF-8 and were read as Windows-1252", text_name, repaired);
  return entries;
}

std::vector<DictEntry> read_dictd(const std::string& folder, const std::string& name) {
  const std::string index = folder + "/" + name + ".index", text = folder + "/" + name + ".dict.dz";
  return parse_dictd(read_whole_file(index), index, read_whole_file(text), text);
}

std::vector<Translation> translations(const std::vector<DictEntry>& entries) {
  std::vector<Translation> out;
  for (const auto& entry : entries) {
    const auto lines = split(entry.text, '\n');
    if (lines.size() < 2) continue;
    std::string first = collapse_spaces(lines[1]);
    if (first.starts_with("1. ")) first.erase(0, 3);
    first = collapse_spaces(without_groups(without_groups(first, '<', '>'), '(', ')'));
    first = first.substr(0, first.find_first_of(",;"));
    first = replace_all(std::string(trim(first)), "\u2010", "-");
    // The headword in the text keeps its capitals and accents; the index may not.
    std::string word = collapse_spaces(lines[0].substr(0, std::min(lines[0].find(" /"), lines[0].find(" <"))));
    word = replace_all(word, "\u2010", "-");
    if (!word.empty() && !first.empty()) out.push_back({word, first});
  }
  return out;
}

namespace {

/// Text between `open` and `close` from `from` on; empty when there is none.
std::string_view between(std::string_view text, std::string_view open, std::string_view close, std::size_t from = 0) {
  const std::size_t begin = text.find(open, from);
  if (begin == std::string_view::npos) return {};
  const std::size_t end = text.find(close, begin + open.size());
  if (end == std::string_view::npos) return {};
  return text.substr(begin + open.size(), end - begin - open.size());
}

bool is_abbreviation(std::string_view text) {
  return text.size() >= 2 && text.size() <= 6 &&
         std::all_of(text.begin(), text.end(), [](char c) { return c >= 'A' && c <= 'Z'; });
}

/// Body of an entry: the lines after the headwords, which start in the first column.
std::string_view body_of(std::string_view text) {
  const std::size_t at = text.find("\n   ");
  return at == std::string_view::npos ? std::string_view{} : text.substr(at + 1);
}

/// The index writes headwords in small letters; the first lines of the entry keep the capitals.
std::string headword_as_written(const DictEntry& entry) {
  for (const std::string& line : split(entry.text, '\n')) {
    if (line.starts_with(" ")) break;
    if (lower_ascii(line) == lower_ascii(entry.headword)) return line;
  }
  return entry.headword;
}

/// Where the first sentence ends: not after an initial ("J. Smith") or an ellipsis.
std::size_t sentence_end(std::string_view text) {
  for (std::size_t at = text.find(". "); at != std::string_view::npos; at = text.find(". ", at + 1)) {
    const std::size_t word = text.rfind(' ', at);
    const std::size_t length = at - (word == std::string_view::npos ? 0 : word + 1);
    if (length >= 3 && text[at - 1] != '.') return at;
  }
  return text.size();
}

}  // namespace

std::string short_definition(const Term& term) {
  std::string text = term.text.substr(0, sentence_end(term.text));
  if (text.starts_with("(")) text = collapse_spaces(text.substr(std::min(text.find(')'), text.size() - 1) + 1));
  if (text.ends_with('.')) text.pop_back();
  const bool refers = text.starts_with("See") || text.find("1.") != std::string::npos;
  return refers || text.size() < 20 || text.size() > 130 ? "" : text;
}

bool letters_occur_in_order(std::string_view letters, std::string_view expansion) {
  const std::string low = lower_ascii(expansion);
  std::size_t at = 0;
  for (const char c : lower_ascii(letters)) {
    at = low.find(c, at);
    if (at == std::string::npos) return false;
    ++at;
  }
  return true;
}

std::vector<Acronym> acronyms(const std::vector<DictEntry>& foldoc) {
  std::vector<Acronym> out;
  const auto add = [&](std::string_view letters, std::string_view expansion) {
    const std::string clean = collapse_spaces(expansion);
    if (!is_abbreviation(letters) || clean.find(' ') == std::string::npos || clean.size() > 50) return;
    if (letters_occur_in_order(letters, clean)) out.push_back({std::string(letters), clean});
  };
  for (const auto& entry : foldoc) {
    const std::string_view body = body_of(entry.text);
    const std::string headword = headword_as_written(entry);
    if (is_abbreviation(headword)) {
      // "1. <subject> {Access Control List}." or "<subject> {Access Control List}."
      const std::string start = collapse_spaces(without_groups(body.substr(0, 200), '<', '>'));
      const std::size_t brace = start.find('{');
      if (brace == 0 || (brace == 3 && start.starts_with("1. "))) add(headword, between(start, "{", "}"));
    } else {
      // "<subject> (ACL) ..." under the headword "Access Control List"
      const std::string start(trim(without_groups(body.substr(0, 120), '<', '>')));
      if (start.starts_with("(")) add(start.substr(1, start.find_first_of(",) ") - 1), headword);
    }
  }
  return out;
}

std::vector<Term> computing_terms(const std::vector<DictEntry>& foldoc) {
  std::vector<Term> out;
  for (const auto& entry : foldoc) {
    std::string body = collapse_spaces(body_of(entry.text));
    Term term;
    term.name = headword_as_written(entry);
    if (body.starts_with("<")) term.subject = std::string(between(body, "<", ">"));
    if (const auto comma = term.subject.find(','); comma != std::string::npos) term.subject.resize(comma);
    body = without_groups(body, '<', '>');
    body = replace_all(replace_all(body, "{", ""), "}", "");
    if (const auto date = body.rfind(" ("); date != std::string::npos && body.size() - date == 13) body.resize(date);
    term.text = collapse_spaces(body);
    if (!term.text.empty()) out.push_back(std::move(term));
  }
  return out;
}

namespace {

/// Word forms named "{Form}" right after `mark` in the head of an entry.
std::vector<Inflection> forms_after(const std::vector<DictEntry>& gcide, std::string_view mark) {
  std::vector<Inflection> out;
  for (const auto& entry : gcide) {
    const std::string head = collapse_spaces(entry.text.substr(0, 240));
    const std::size_t at = head.find(mark);
    if (at == std::string::npos || head.find("1. ") < at) continue;
    const std::string word = lower_ascii(head.substr(0, head.find(' ')));
    const std::string form = lower_ascii(between(head.substr(at + mark.size() - 1), "{", "}"));
    // "{-ria}" and forms of another headword of the same entry say nothing on their own.
    if (is_plain_word(word) && is_plain_word(form) && word.substr(0, 1) == form.substr(0, 1))
      out.push_back({word, form});
  }
  std::sort(out.begin(), out.end(), [](const Inflection& a, const Inflection& b) {
    return a.word != b.word ? a.word < b.word : a.form < b.form;
  });
  const auto same_word = [](const Inflection& a, const Inflection& b) { return a.word == b.word; };
  out.erase(std::unique(out.begin(), out.end(), same_word), out.end());
  return out;
}

}  // namespace

std::vector<Inflection> plural_forms(const std::vector<DictEntry>& gcide) { return forms_after(gcide, "; pl. {"); }
std::vector<Inflection> past_forms(const std::vector<DictEntry>& gcide) {
  return forms_after(gcide, "[imp. & p. p. {");
}

std::string english_entry_text(const DictEntry& entry) {
  std::string text = without_groups(entry.text, '[', ']');
  text = without_groups(text, '\\', '\\');
  text = replace_all(replace_all(text, "{", ""), "}", "");
  std::string out;
  for (const std::string& line : split(text, '\n')) {
    const std::string_view words = trim(line);
    if (!words.empty()) out.append(words).append(" ");
  }
  // Numbers of quotations such as "--Shak." stay: they are words of the text.
  return collapse_spaces(replace_all(replace_all(out, " ,", ","), " .", "."));
}

}  // namespace flanmoe::tutorial
