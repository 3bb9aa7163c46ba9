// Tasks about the forms and classes of words.
#include <algorithm>
#include <map>
#include <set>

#include "data/tutorial/items.hpp"

namespace flanmoe::tutorial {

namespace {

constexpr std::size_t kMostItems = 6000;

bool is_noun(const WordNet& wordnet, const std::string& word) {
  return wordnet.first_sense[int(WordClass::noun)].contains(word);
}
bool is_verb(const WordNet& wordnet, const std::string& word) {
  return wordnet.first_sense[int(WordClass::verb)].contains(word);
}

/// Words of the glosses and examples, in lower case.
std::set<std::string> words_of_text(const WordNet& wordnet) {
  std::set<std::string> words;
  const auto collect = [&](const std::string& text) {
    std::string word;
    for (const char c : lower_ascii(text) + " ") {
      if (c >= 'a' && c <= 'z') {
        word += c;
      } else {
        if (is_plain_word(word) && c != '\'') words.insert(word);
        word.clear();
      }
    }
  };
  for (const auto& synset : wordnet.synsets) {
    collect(synset.gloss);
    for (const auto& example : synset.examples) collect(example);
  }
  return words;
}

/// Singular of a regular plural when it is a noun and no verb ("walks" may be either), otherwise "".
std::string regular_singular(const WordNet& wordnet, const std::string& plural) {
  const auto fits = [&](const std::string& word) {
    return is_plain_word(word) && is_noun(wordnet, word) && !is_verb(wordnet, word);
  };
  const std::size_t n = plural.size();
  if (n < 4 || plural.back() != 's' || plural[n - 2] == 's') return "";
  if (plural.ends_with("ies")) return fits(plural.substr(0, n - 3) + "y") ? plural.substr(0, n - 3) + "y" : "";
  if (const std::string word = plural.substr(0, n - 1); fits(word)) return word;
  if (const std::string word = plural.substr(0, n - 2); plural.ends_with("es") && fits(word)) return word;
  return "";
}

/// Singular to plural: forms met in WordNet's texts, its list of exceptions, and the English dictionary.
std::map<std::string, std::string> plurals(const Sources& sources) {
  const WordNet& wordnet = sources.wordnet;
  std::map<std::string, std::string> plural_of;
  const auto is_lemma = [&](const std::string& word) {
    for (const auto& table : wordnet.first_sense) {
      if (table.contains(word)) return true;
    }
    return false;
  };
  for (const auto& list : {sources.irregular_plurals, plural_forms(sources.gcide)}) {
    for (const auto& [word, form] : list) {
      const auto sense = wordnet.first_sense[int(WordClass::noun)].find(word);
      const bool everyday = sense != wordnet.first_sense[int(WordClass::noun)].end() && sense->second.seen;
      if (everyday && is_plain_word(word) && is_plain_word(form) && form != word) plural_of.emplace(word, form);
    }
  }
  for (const auto& word : words_of_text(wordnet)) {
    if (is_lemma(word)) continue;
    if (const std::string singular = regular_singular(wordnet, word); !singular.empty()) {
      plural_of.emplace(singular, word);
    }
  }
  return plural_of;
}

/// The first three of `forms` that differ from the answer and from each other.
std::vector<std::string> wrong_forms(const std::vector<std::string>& forms, const std::string& answer) {
  std::vector<std::string> wrong;
  for (const auto& form : forms) {
    if (form != answer && std::find(wrong.begin(), wrong.end(), form) == wrong.end()) wrong.push_back(form);
    if (wrong.size() == 3) break;
  }
  return wrong;
}

}  // namespace

Items part_of_speech(const Sources& sources) {
  const WordNet& wordnet = sources.wordnet;
  Items items;
  for (int c = 0; c < 4; ++c) {
    for (const auto& [word, sense] : wordnet.first_sense[c]) {
      const Synset& synset = wordnet.synsets[sense.synset];
      if (!is_plain_word(word) || synset.gloss.size() > 80) continue;
      items.push_back({word,
                       {{"word", word}, {"gloss", synset.gloss}},
                       name_of(WordClass(c)),
                       {"noun", "verb", "adjective", "adverb"}});
    }
  }
  std::stable_sort(items.begin(), items.end(), [](const Item& a, const Item& b) { return a.answer < b.answer; });
  return balanced(std::move(items), kMostItems / 4);
}

Items plural(const Sources& sources) {
  Items items;
  Random random("plural", 0);
  for (const auto& [word, form] : plurals(sources)) {
    const std::string stem = word.substr(0, word.size() - 1);
    std::vector<std::string> forms = {word + "s", word + "es", stem + "ies", stem + "i", word + "en"};
    if (!form.ends_with("s")) forms.erase(forms.begin());  // "dogmas" is as good as "dogmata"
    Item item{word, {{"word", word}}, form, {}};
    set_choices(item, wrong_forms(forms, form), random);
    items.push_back(std::move(item));
  }
  return limited(std::move(items), kMostItems);
}

Items singular_or_plural(const Sources& sources) {
  Items items;
  Random random("singular_or_plural", 0);
  for (const auto& [word, form] : plurals(sources)) {
    const bool is_plural = random.below(2) == 0;
    items.push_back(
        {word, {{"word", is_plural ? form : word}}, is_plural ? "plural" : "singular", {"singular", "plural"}});
  }
  return balanced(std::move(items), kMostItems / 2);
}

Items past_tense(const Sources& sources) {
  Items items;
  Random random("past_tense", 0);
  for (const auto& [word, form] : past_forms(sources.gcide)) {
    if (!is_verb(sources.wordnet, word) || word == form) continue;
    const std::string last = word.substr(word.size() - 1);
    std::vector<std::string> forms = {word + "ed", word + "d", word + "t", word + "en"};
    // "gambolled" is as good as "gamboled".
    if (last != "e" && last != "l") forms.insert(forms.begin() + 1, word + last + "ed");
    Item item{word, {{"word", word}}, form, {}};
    set_choices(item, wrong_forms(forms, form), random);
    items.push_back(std::move(item));
  }
  return limited(std::move(items), kMostItems);
}

}  // namespace flanmoe::tutorial
