// Plain text for pretraining and for the tokenizer.
#pragma once

#include <string>
#include <vector>

#include "data/tutorial/sources.hpp"

namespace flanmoe::tutorial {

struct Corpus {
  const char* name;
  std::vector<std::string> (*documents)(const Sources&);
};
/// Every corpus, each of which becomes a shard of text.
const std::vector<Corpus>& corpora();

// Neither part of speech, relations, sections nor tags are written into the documents: tasks ask for them.
std::vector<std::string> wordnet_documents(const Sources&);  // "word, word: gloss. Example."
std::vector<std::string> foldoc_documents(const Sources&);   // "term: text"
std::vector<std::string> gcide_documents(const Sources&);    // a sample of the English dictionary
std::vector<std::string> package_documents(const Sources&);  // "name: description"

/// Sentences to train the tokenizer on: a sample of all documents, and the words of the bilingual dictionaries.
std::vector<std::string> tokenizer_sentences(const Sources&);

}  // namespace flanmoe::tutorial
