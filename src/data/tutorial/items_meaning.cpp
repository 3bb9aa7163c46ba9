// Tasks about the meaning of words, from WordNet.
#include <algorithm>
#include <map>
#include <numeric>
#include <set>

#include "data/tutorial/items.hpp"

namespace flanmoe::tutorial {

namespace {

constexpr std::size_t kMostItems = 6000;

/// A plain word in its most frequent sense.
struct Entry {
  std::string word;
  WordClass word_class;
  std::size_t synset;
};

/// Words of everyday text (those that WordNet's tagged corpus holds), in alphabetical order, class by class.
std::vector<Entry> everyday_entries(const WordNet& wordnet) {
  std::vector<Entry> entries;
  for (int c = 0; c < 4; ++c) {
    const std::size_t begin = entries.size();
    for (const auto& [word, sense] : wordnet.first_sense[c]) {
      if (sense.seen && is_plain_word(word)) entries.push_back({word, WordClass(c), sense.synset});
    }
    std::sort(entries.begin() + std::ptrdiff_t(begin), entries.end(),
              [](const Entry& a, const Entry& b) { return a.word < b.word; });
  }
  return entries;
}

/// Texts of all entries of a class, the pool that wrong choices come from.
template <class Text>
std::vector<std::string> pool_of(const std::vector<Entry>& entries, WordClass word_class, Text text) {
  std::vector<std::string> pool;
  for (const auto& entry : entries) {
    if (entry.word_class == word_class) pool.push_back(text(entry));
  }
  return pool;
}

bool is_short_gloss(const std::string& gloss) { return gloss.size() >= 10 && gloss.size() <= 90; }

bool has_word(const Synset& synset, const std::string& word) {
  return std::find(synset.words.begin(), synset.words.end(), word) != synset.words.end();
}

/// First synset that a relation of this kind leads to, or `none`.
constexpr std::size_t kNone = std::size_t(-1);
std::size_t related(const WordNet& wordnet, std::size_t synset, std::string_view symbol) {
  for (const auto& relation : wordnet.synsets[synset].relations) {
    if (relation.symbol == symbol) return wordnet.find(relation.word_class, relation.offset);
  }
  return kNone;
}

/// Plain first word of a synset, "" when it has none.
std::string plain_name(const Synset& synset) { return is_plain_word(synset.words[0]) ? synset.words[0] : ""; }

/// Glosses and words asked in one direction or the other.
Items gloss_items(const Sources& sources, bool word_is_answer) {
  const auto entries = everyday_entries(sources.wordnet);
  const auto gloss_of = [&](const Entry& entry) { return sources.wordnet.synsets[entry.synset].gloss; };
  std::vector<std::string> pools[4];
  for (int c = 0; c < 4; ++c) {
    pools[c] = pool_of(entries, WordClass(c), [&](const Entry& e) { return word_is_answer ? e.word : gloss_of(e); });
    std::erase_if(pools[c], [&](const std::string& text) { return !word_is_answer && !is_short_gloss(text); });
  }
  Items items;
  Random random("gloss", word_is_answer);
  for (const auto& entry : entries) {
    const std::string gloss = gloss_of(entry);
    if (!is_short_gloss(gloss) || gloss.find(entry.word) != std::string::npos) continue;
    Item item;
    item.key = entry.word;
    item.answer = word_is_answer ? entry.word : gloss;
    item.fields = {{"word", entry.word},
                   {"gloss", gloss},
                   {"class", name_of(entry.word_class)},
                   {"a_class", with_article(name_of(entry.word_class))}};
    const Synset& synset = sources.wordnet.synsets[entry.synset];
    draw_choices(item, pools[int(entry.word_class)], 3, random,
                 [&](const std::string& text) { return word_is_answer && has_word(synset, text); });
    items.push_back(std::move(item));
  }
  return limited(std::move(items), kMostItems);
}

}  // namespace

Items define_word(const Sources& sources) { return gloss_items(sources, false); }
Items word_for_gloss(const Sources& sources) { return gloss_items(sources, true); }

Items synonym(const Sources& sources) {
  const auto entries = everyday_entries(sources.wordnet);
  Items items;
  Random random("synonym", 0);
  std::vector<std::string> pools[4];
  for (int c = 0; c < 4; ++c) pools[c] = pool_of(entries, WordClass(c), [](const Entry& e) { return e.word; });
  for (const auto& entry : entries) {
    const Synset& synset = sources.wordnet.synsets[entry.synset];
    std::vector<std::string> others;
    for (const auto& word : synset.words) {
      // A shared stem ("color", "colour") would give the answer away.
      if (is_plain_word(word) && word.substr(0, 3) != entry.word.substr(0, 3)) others.push_back(word);
    }
    if (others.empty()) continue;
    Item item;
    item.key = std::to_string(int(entry.word_class)) + "/" + std::to_string(synset.offset);
    item.answer = others[0];
    item.fields = {{"word", entry.word}, {"class", name_of(entry.word_class)}};
    draw_choices(item, pools[int(entry.word_class)], 3, random,
                 [&](const std::string& text) { return has_word(synset, text); });
    items.push_back(std::move(item));
  }
  return limited(std::move(items), kMostItems);
}

namespace {

/// Joins words that are opposites into groups, so that a pair and its reverse share a key.
class Groups {
 public:
  const std::string& root(const std::string& word) {
    auto at = parent_.emplace(word, word).first;
    while (at->first != at->second) at = parent_.find(at->second);
    return at->first;
  }
  void join(const std::string& a, const std::string& b) {
    const std::string root_a = root(a), root_b = root(b);
    parent_[std::max(root_a, root_b)] = std::min(root_a, root_b);
  }

 private:
  std::map<std::string, std::string> parent_;
};

}  // namespace

Items antonym(const Sources& sources) {
  const WordNet& wordnet = sources.wordnet;
  std::set<std::string> everyday;
  for (const auto& entry : everyday_entries(wordnet)) everyday.insert(entry.word);
  struct Pair {
    std::string word, opposite;
    WordClass word_class;
  };
  std::vector<Pair> pairs;
  std::set<std::pair<std::string, std::string>> known;
  Groups groups;
  for (const Synset& synset : wordnet.synsets) {
    for (const auto& relation : synset.relations) {
      if (relation.symbol != "!" || relation.source == 0 || relation.target == 0) continue;
      const Synset& other = wordnet.synsets[wordnet.find(relation.word_class, relation.offset)];
      const std::string& word = synset.words.at(std::size_t(relation.source - 1));
      const std::string& opposite = other.words.at(std::size_t(relation.target - 1));
      if (!everyday.contains(word) || !everyday.contains(opposite) || !known.insert({word, opposite}).second) continue;
      pairs.push_back({word, opposite, synset.word_class});
      groups.join(word, opposite);
    }
  }
  // Wrong choices are opposites of other words: the prefix of a choice ("un-") tells nothing.
  std::vector<std::string> pools[4];
  for (const auto& pair : pairs) pools[int(pair.word_class)].push_back(pair.opposite);
  Items items;
  Random random("antonym", 0);
  for (const auto& pair : pairs) {
    Item item;
    item.key = groups.root(pair.word);
    item.answer = pair.opposite;
    item.fields = {{"word", pair.word}, {"class", name_of(pair.word_class)}};
    draw_choices(item, pools[int(pair.word_class)], 3, random, [&](const std::string& text) {
      return text == pair.word || known.contains({pair.word, text});
    });
    items.push_back(std::move(item));
  }
  return limited(std::move(items), kMostItems);
}

namespace {

/// Everyday nouns with their "is a kind of" parent's name.
struct Kind {
  Entry entry;
  std::size_t parent;
  std::string parent_name;
};

std::vector<Kind> kinds(const WordNet& wordnet) {
  std::vector<Kind> out;
  for (const auto& entry : everyday_entries(wordnet)) {
    if (entry.word_class != WordClass::noun) continue;
    const std::size_t parent = related(wordnet, entry.synset, "@");
    if (parent == kNone) continue;
    const std::string name = plain_name(wordnet.synsets[parent]);
    if (!name.empty() && name.find(entry.word) == std::string::npos && entry.word.find(name) == std::string::npos) {
      out.push_back({entry, parent, name});
    }
  }
  return out;
}

/// Names of every ancestor of every sense: none of them may serve as a wrong answer.
void collect_ancestors(const WordNet& wordnet, std::size_t synset, std::set<std::string>& names, int depth = 0) {
  for (const auto& word : wordnet.synsets[synset].words) names.insert(word);
  if (depth > 24) return;
  for (const auto& relation : wordnet.synsets[synset].relations) {
    if (relation.symbol == "@" || relation.symbol == "@i") {
      collect_ancestors(wordnet, wordnet.find(relation.word_class, relation.offset), names, depth + 1);
    }
  }
}

}  // namespace

Items kind_of(const Sources& sources) {
  const auto all = kinds(sources.wordnet);
  std::vector<std::string> pool;
  for (const auto& kind : all) pool.push_back(kind.parent_name);
  Items items;
  Random random("kind_of", 0);
  for (const auto& kind : all) {
    Item item;
    item.key = kind.entry.word;
    item.answer = kind.parent_name;
    item.fields = {{"word", kind.entry.word}};
    std::set<std::string> ancestors;
    collect_ancestors(sources.wordnet, kind.entry.synset, ancestors);
    draw_choices(item, pool, 3, random, [&](const std::string& text) { return ancestors.contains(text); });
    items.push_back(std::move(item));
  }
  return limited(std::move(items), kMostItems);
}

Items is_kind_of(const Sources& sources) {
  const auto all = kinds(sources.wordnet);
  Items items;
  Random random("is_kind_of", 0);
  for (const auto& kind : all) {
    std::set<std::string> ancestors;
    collect_ancestors(sources.wordnet, kind.entry.synset, ancestors);
    const bool yes = random.below(2) == 0;
    std::string other = kind.parent_name;
    while (!yes && ancestors.contains(other)) other = random.pick(all).parent_name;
    Item item;
    item.key = kind.entry.word;
    item.answer = yes ? "yes" : "no";
    item.choices = {"yes", "no"};
    item.fields = {{"word", kind.entry.word}, {"other", other}};
    items.push_back(std::move(item));
  }
  return balanced(std::move(items), kMostItems / 2);
}

Items sort_of_thing(const Sources& sources) {
  // Lexicographer files of WordNet's nouns, in plain words.
  static const std::map<int, std::string> kSorts = {{5, "animal"}, {6, "object"},  {8, "body part"}, {13, "food"},
                                                    {15, "place"}, {18, "person"}, {20, "plant"},    {27, "substance"}};
  std::vector<std::string> labels;
  for (const auto& [number, label] : kSorts) labels.push_back(label);
  Items items;
  for (const auto& [word, sense] : sources.wordnet.first_sense[int(WordClass::noun)]) {
    const Synset& synset = sources.wordnet.synsets[sense.synset];
    const auto sort = kSorts.find(synset.file_number);
    if (!is_plain_word(word) || sort == kSorts.end() || !is_short_gloss(synset.gloss)) continue;
    if (!has_word(synset, word)) continue;  // the word is written with a capital: a name
    items.push_back(
        {word, {{"word", word}, {"a_word", with_article(word)}, {"gloss", synset.gloss}}, sort->second, labels});
  }
  return balanced(std::move(items), kMostItems / labels.size());
}

Items belongs_with(const Sources& sources) {
  const WordNet& wordnet = sources.wordnet;
  const auto all = kinds(wordnet);
  std::map<std::size_t, std::vector<std::string>> children;
  std::vector<std::string> pool;
  for (const auto& kind : all) {
    children[kind.parent].push_back(kind.entry.word);
    pool.push_back(kind.entry.word);
  }
  Items items;
  Random random("belongs_with", 0);
  for (auto& [parent, words] : children) {
    if (words.size() < 4) continue;
    const std::vector<std::string> known = words;
    const auto is_child = [&](const std::string& word) {
      return std::find(known.begin(), known.end(), word) != known.end();
    };
    const std::size_t rounds = std::min<std::size_t>(known.size() / 2, 6);
    for (std::size_t round = 0; round < rounds; ++round) {
      random.shuffle(words);
      Item item;
      item.key = std::to_string(wordnet.synsets[parent].offset);
      item.answer = words[3];
      item.fields = {{"first", words[0]}, {"second", words[1]}, {"third", words[2]}};
      draw_choices(item, pool, 3, random, is_child);
      items.push_back(std::move(item));
    }
  }
  return limited(std::move(items), kMostItems);
}

namespace {

/// `text` with the whole word `word` replaced by a blank; empty when it does not stand there.
std::string blanked(const std::string& text, const std::string& word) {
  const auto is_letter = [](char c) { return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z'); };
  for (std::size_t at = text.find(word); at != std::string::npos; at = text.find(word, at + 1)) {
    const std::size_t end = at + word.size();
    if ((at > 0 && is_letter(text[at - 1])) || (end < text.size() && is_letter(text[end]))) continue;
    return text.substr(0, at) + "___" + text.substr(end);
  }
  return "";
}

}  // namespace

Items fill_blank(const Sources& sources) {
  const auto entries = everyday_entries(sources.wordnet);
  std::vector<std::string> pools[4];
  for (int c = 0; c < 4; ++c) pools[c] = pool_of(entries, WordClass(c), [](const Entry& e) { return e.word; });
  Items items;
  Random random("fill_blank", 0);
  for (const Synset& synset : sources.wordnet.synsets) {
    for (const auto& example : synset.examples) {
      const auto has_blank = [&](const std::string& word) {
        return is_plain_word(word) && !blanked(example, word).empty();
      };
      const auto word = std::find_if(synset.words.begin(), synset.words.end(), has_blank);
      const auto spaces = std::count(example.begin(), example.end(), ' ');
      if (word == synset.words.end() || spaces < 3 || example.size() > 80) continue;
      Item item;
      item.key = *word;
      item.answer = *word;
      item.fields = {{"sentence", blanked(example, *word)}, {"class", name_of(synset.word_class)}};
      draw_choices(item, pools[int(synset.word_class)], 3, random,
                   [&](const std::string& text) { return has_word(synset, text); });
      items.push_back(std::move(item));
    }
  }
  return limited(std::move(items), kMostItems);
}

}  // namespace flanmoe::tutorial
