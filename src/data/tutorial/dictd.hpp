// Dictionaries in the format of the dictd server: one text file (gzip) and an index of headwords.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace flanmoe::tutorial {

struct DictEntry {
  std::string headword;
  std::string text;  // as in the file, UTF-8
};

/// Number written with the 64 digits A-Z a-z 0-9 + /, most significant first; -1 when it is malformed.
std::int64_t parse_base64_number(std::string_view digits);

/// Entries of a dictionary; `index` is the text of NAME.index, `text` that of NAME.dict, and the names are for
/// messages. Entries about the database itself ("00-database-...") are left out. An entry that several headwords point
/// at appears once per headword. Throws Error with file and line for an index line that is malformed or points outside.
std::vector<DictEntry> parse_dictd(std::string_view index, const std::string& index_name, std::string_view text,
                                   const std::string& text_name);
/// FOLDER/NAME.index and FOLDER/NAME.dict.dz.
std::vector<DictEntry> read_dictd(const std::string& folder, const std::string& name);

/// An entry of a FreeDict dictionary: "word /sound/ <grammar>" and translations, one sense a line.
struct Translation {
  std::string word, translation;  // the first translation of the first sense
};
std::vector<Translation> translations(const std::vector<DictEntry>& entries);

/// An abbreviation of the computing dictionary and what it stands for.
struct Acronym {
  std::string letters, expansion;
};
std::vector<Acronym> acronyms(const std::vector<DictEntry>& foldoc);
/// Every letter of the abbreviation occurs in the expansion, in order.
bool letters_occur_in_order(std::string_view letters, std::string_view expansion);

/// A term of the computing dictionary: its first subject and its text without marks.
struct Term {
  std::string name, subject, text;
};
std::vector<Term> computing_terms(const std::vector<DictEntry>& foldoc);
/// First sentence of a term's text, "" unless it is a definition of 20 to 130 bytes.
std::string short_definition(const Term& term);

/// Inflected forms that the English dictionary gives: "n.; pl. {Berries}", "imp. & p. p. {Baked}".
struct Inflection {
  std::string word, form;
};
std::vector<Inflection> plural_forms(const std::vector<DictEntry>& gcide);
std::vector<Inflection> past_forms(const std::vector<DictEntry>& gcide);
/// Headword and definitions of an English entry, without pronunciation, etymology and sources.
std::string english_entry_text(const DictEntry& entry);

}  // namespace flanmoe::tutorial
