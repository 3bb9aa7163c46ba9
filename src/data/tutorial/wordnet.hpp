// WordNet 3.0 database files: synsets with glosses, examples and relations.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

namespace flanmoe::tutorial {

enum class WordClass { noun, verb, adjective, adverb };
const char* name_of(WordClass word_class);

struct Relation {
  std::string symbol;          // "@" is a kind of, "~" the reverse, "!" antonym, "&" similar, ...
  WordClass word_class;        // of the other synset
  std::int64_t offset = 0;     // of the other synset
  int source = 0, target = 0;  // word numbers from 1; 0: the relation holds for the whole synset
};

struct Synset {
  WordClass word_class = WordClass::noun;
  std::int64_t offset = 0;  // its name in the file
  int file_number = 0;      // lexicographer file: 5 animals, 13 food, 18 people, ...
  std::vector<std::string> words;
  std::vector<Relation> relations;
  std::string gloss;
  std::vector<std::string> examples;
};

/// One meaning of a word.
struct Sense {
  std::size_t synset = 0;  // index into WordNet::synsets
  bool seen = false;       // the word occurs in WordNet's tagged corpus: a word of everyday text
};

struct WordNet {
  std::vector<Synset> synsets;
  /// The most frequent sense of each word of a class; the key is the word with '_' for blanks, in lower case.
  std::unordered_map<std::string, Sense> first_sense[4];
  /// Index of a synset; throws Error when a relation points nowhere.
  std::size_t find(WordClass word_class, std::int64_t offset) const;
  void add(Synset synset);

 private:
  std::unordered_map<std::int64_t, std::size_t> by_offset_[4];
};

/// One line of a data file; `where` ("file:line") stands in front of messages. Throws Error when it is malformed.
Synset parse_synset(std::string_view line, WordClass word_class, const std::string& where);
WordNet read_wordnet(const std::string& folder);

}  // namespace flanmoe::tutorial
