#include "evaluate/stemmer.hpp"

#include <algorithm>
#include <array>
#include <cstddef>

namespace flanmoe {
namespace {

using View = std::string_view;

bool is_vowel_letter(char c) { return View("aeiou").find(c) != View::npos; }

/// Consonant or vowel of every letter: a y is a vowel after a consonant.
std::string kinds_of(View word) {
  std::string kinds;
  for (const char c : word) {
    const bool vowel = is_vowel_letter(c) || (c == 'y' && !kinds.empty() && kinds.back() == 'c');
    kinds += vowel ? 'v' : 'c';
  }
  return kinds;
}

/// Porter's m: how often a vowel is followed by a consonant.
int measure(View stem) {
  const std::string kinds = kinds_of(stem);
  int m = 0;
  for (std::size_t i = 1; i < kinds.size(); ++i) m += kinds[i - 1] == 'v' && kinds[i] == 'c' ? 1 : 0;
  return m;
}

bool has_vowel(View stem) { return kinds_of(stem).find('v') != std::string::npos; }

bool ends_in_double_consonant(View word) {
  const std::size_t n = word.size();
  return n >= 2 && word[n - 1] == word[n - 2] && kinds_of(word).back() == 'c';
}

/// Consonant, vowel, consonant other than w, x and y; or a vowel and a consonant are the whole word.
bool ends_in_short_syllable(View word) {
  const std::string kinds = kinds_of(word);
  if (word.size() == 2) return kinds == "vc";
  return word.size() >= 3 && kinds.ends_with("cvc") && View("wxy").find(word.back()) == View::npos;
}

View without(View word, View suffix) { return word.substr(0, word.size() - suffix.size()); }

struct Rule {
  View suffix, replacement;
};

/// Only the first rule whose suffix fits counts: it replaces it when the stem's measure exceeds `least`.
template <std::size_t N>
std::string apply_first(const std::array<Rule, N>& rules, const std::string& word, int least) {
  for (const Rule& rule : rules) {
    if (!word.ends_with(rule.suffix)) continue;
    const View stem = without(word, rule.suffix);
    return measure(stem) > least ? std::string(stem).append(rule.replacement) : word;
  }
  return word;
}

/// Plurals.
std::string step_1a(const std::string& word) {
  if (word.ends_with("ies")) return word.substr(0, word.size() - (word.size() == 4 ? 1 : 2));
  if (word.ends_with("sses")) return word.substr(0, word.size() - 2);
  if (word.ends_with("ss") || !word.ends_with('s')) return word;
  return word.substr(0, word.size() - 1);
}

/// Puts right what is left when "ed" or "ing" has gone.
std::string mended(const std::string& stem) {
  for (const View end : {"at", "bl", "iz"}) {
    if (stem.ends_with(end)) return stem + "e";
  }
  if (ends_in_double_consonant(stem)) {
    const bool stays = View("lsz").find(stem.back()) != View::npos;
    return stays ? stem : stem.substr(0, stem.size() - 1);
  }
  return measure(stem) == 1 && ends_in_short_syllable(stem) ? stem + "e" : stem;
}

/// Past tenses and participles.
std::string step_1b(const std::string& word) {
  if (word.ends_with("ied")) return word.substr(0, word.size() - (word.size() == 4 ? 1 : 2));
  if (word.ends_with("eed")) {
    return measure(without(word, "eed")) > 0 ? word.substr(0, word.size() - 1) : word;
  }
  for (const View suffix : {"ed", "ing"}) {
    if (!word.ends_with(suffix)) continue;
    const std::string stem(without(word, suffix));
    if (has_vowel(stem)) return mended(stem);
  }
  return word;
}

/// A y after a consonant becomes i, unless only one letter is before it.
std::string step_1c(std::string word) {
  if (word.size() > 2 && word.back() == 'y' && kinds_of(word)[word.size() - 2] == 'c') word.back() = 'i';
  return word;
}

std::string step_2(const std::string& word) {
  static constexpr std::array<Rule, 21> kRules = {
      {{"ational", "ate"}, {"tional", "tion"}, {"enci", "ence"}, {"anci", "ance"}, {"izer", "ize"},
       {"bli", "ble"},     {"alli", "al"},     {"entli", "ent"}, {"eli", "e"},     {"ousli", "ous"},
       {"ization", "ize"}, {"ation", "ate"},   {"ator", "ate"},  {"alism", "al"},  {"iveness", "ive"},
       {"fulness", "ful"}, {"ousness", "ous"}, {"aliti", "al"},  {"iviti", "ive"}, {"biliti", "ble"},
       {"fulli", "ful"}}};
  if (word.ends_with("alli") && measure(without(word, "alli")) > 0) return step_2(word.substr(0, word.size() - 2));
  // The l belongs to the stem here, so that "geologi" has a measure.
  if (word.ends_with("logi")) return measure(without(word, "ogi")) > 0 ? word.substr(0, word.size() - 1) : word;
  return apply_first(kRules, word, 0);
}

std::string step_3(const std::string& word) {
  static constexpr std::array<Rule, 7> kRules = {
      {{"icate", "ic"}, {"ative", ""}, {"alize", "al"}, {"iciti", "ic"}, {"ical", "ic"}, {"ful", ""}, {"ness", ""}}};
  return apply_first(kRules, word, 0);
}

std::string step_4(const std::string& word) {
  static constexpr std::array<Rule, 18> kRules = {{{"al", ""},
                                                   {"ance", ""},
                                                   {"ence", ""},
                                                   {"er", ""},
                                                   {"ic", ""},
                                                   {"able", ""},
                                                   {"ible", ""},
                                                   {"ant", ""},
                                                   {"ement", ""},
                                                   {"ment", ""},
                                                   {"ent", ""},
                                                   {"ou", ""},
                                                   {"ism", ""},
                                                   {"ate", ""},
                                                   {"iti", ""},
                                                   {"ous", ""},
                                                   {"ive", ""},
                                                   {"ize", ""}}};
  if (word.ends_with("ion")) {
    const View stem = without(word, "ion");
    return measure(stem) > 1 && (stem.back() == 's' || stem.back() == 't') ? std::string(stem) : word;
  }
  return apply_first(kRules, word, 1);
}

/// A last e, and one l of two.
std::string step_5(std::string word) {
  if (word.ends_with('e')) {
    const View stem = without(word, "e");
    const int m = measure(stem);
    if (m > 1 || (m == 1 && !ends_in_short_syllable(stem))) word.pop_back();
  }
  if (word.ends_with("ll") && measure(without(word, "l")) > 1) word.pop_back();
  return word;
}

constexpr std::array<Rule, 16> kIrregular = {{{"sky", "sky"},
                                              {"skies", "sky"},
                                              {"dying", "die"},
                                              {"lying", "lie"},
                                              {"tying", "tie"},
                                              {"news", "news"},
                                              {"innings", "inning"},
                                              {"inning", "inning"},
                                              {"outings", "outing"},
                                              {"outing", "outing"},
                                              {"cannings", "canning"},
                                              {"canning", "canning"},
                                              {"howe", "howe"},
                                              {"proceed", "proceed"},
                                              {"exceed", "exceed"},
                                              {"succeed", "succeed"}}};

}  // namespace

std::string porter_stem(std::string_view word) {
  const auto irregular =
      std::find_if(kIrregular.begin(), kIrregular.end(), [&](const Rule& rule) { return rule.suffix == word; });
  if (irregular != kIrregular.end()) return std::string(irregular->replacement);
  if (word.size() <= 2) return std::string(word);
  return step_5(step_4(step_3(step_2(step_1c(step_1b(step_1a(std::string(word))))))));
}

}  // namespace flanmoe
