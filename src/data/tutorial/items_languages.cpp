// Tasks from the bilingual dictionaries.
#include <algorithm>
#include <map>
#include <set>

#include "data/tutorial/items.hpp"

namespace flanmoe::tutorial {

namespace {

/// One word in small letters; letters with accents are allowed.
bool is_foreign_word(const std::string& text) {
  return character_count(text) >= 3 && text.size() <= 16 && std::all_of(text.begin(), text.end(), [](char c) {
           return (c >= 'a' && c <= 'z') || static_cast<unsigned char>(c) >= 0x80;
         });
}

bool is_english_word(const Sources& sources, const std::string& text) {
  if (!is_plain_word(text)) return false;
  for (const auto& table : sources.wordnet.first_sense) {
    if (table.contains(text)) return true;
  }
  return false;
}

/// Single words with their first translation. Words that are the same in both languages ask nothing. Checking the
/// English side against WordNet also drops the compounds that the dictionaries wrote without their blanks.
Items translation_items(const Sources& sources, const std::vector<Translation>& entries, bool from_english,
                        const char* purpose) {
  Items items;
  std::vector<std::string> pool;
  std::set<std::string> known;
  std::multimap<std::string, std::string> all;
  for (const auto& [word, translation] : entries) {
    const std::string& english = from_english ? word : translation;
    const std::string& foreign = from_english ? translation : word;
    all.emplace(word, translation);
    if (!is_english_word(sources, english) || !is_foreign_word(foreign) || word == translation) continue;
    if (!known.insert(word).second) continue;
    items.push_back({word, {{"word", word}}, translation, {}});
    pool.push_back(translation);
  }
  Random random(purpose, 0);
  for (auto& item : items) {
    const auto [begin, end] = all.equal_range(item.key);
    draw_choices(item, pool, 3, random, [&, first = begin, last = end](const std::string& text) {
      return std::any_of(first, last, [&](const auto& entry) { return entry.second == text; });
    });
  }
  return items;
}

}  // namespace

Items translate_english_french(const Sources& sources) {
  return translation_items(sources, sources.english_french, true, "english_french");
}
Items translate_french_english(const Sources& sources) {
  return translation_items(sources, sources.french_english, false, "french_english");
}
Items translate_dutch_english(const Sources& sources) {
  return translation_items(sources, sources.dutch_english, false, "dutch_english");
}

Items word_language(const Sources& sources) {
  static const std::vector<std::string> kLanguages = {"English", "French", "Spanish", "Dutch"};
  std::map<std::string, std::set<std::string>> languages_of;
  for (const auto& [word, sense] : sources.wordnet.first_sense[int(WordClass::noun)]) {
    if (sense.seen) languages_of[word].insert("English");
  }
  for (const auto& entry : sources.english_french) languages_of[entry.word].insert("English");
  for (const auto& entry : sources.french_english) languages_of[entry.word].insert("French");
  for (const auto& entry : sources.spanish_english) languages_of[entry.word].insert("Spanish");
  for (const auto& entry : sources.dutch_english) languages_of[entry.word].insert("Dutch");
  Items items;
  for (const auto& [word, languages] : languages_of) {
    if (languages.size() != 1 || !is_foreign_word(word)) continue;
    if (*languages.begin() != "English" && is_english_word(sources, word)) continue;
    items.push_back({word, {{"word", word}}, *languages.begin(), kLanguages});
  }
  return balanced(std::move(items), 1500);
}

}  // namespace flanmoe::tutorial
