#include "data/tutorial/documents.hpp"

#include <set>

#include "data/text.hpp"

namespace flanmoe::tutorial {

namespace {

constexpr std::size_t kMostBytes = 1600;  // of a document; longer ones lose their end

}  // namespace

const std::vector<Corpus>& corpora() {
  static const std::vector<Corpus> kCorpora = {{"wordnet", wordnet_documents},
                                               {"foldoc", foldoc_documents},
                                               {"gcide", gcide_documents},
                                               {"packages", package_documents}};
  return kCorpora;
}

std::vector<std::string> wordnet_documents(const Sources& sources) {
  std::vector<std::string> documents;
  for (const auto& synset : sources.wordnet.synsets) {
    std::string text;
    for (const auto& word : synset.words) text += (text.empty() ? "" : ", ") + word;
    text += ": " + synset.gloss + ".";
    for (const auto& example : synset.examples) text += " \"" + example + "\"";
    documents.push_back(shortened(text, kMostBytes));
  }
  return documents;
}

std::vector<std::string> foldoc_documents(const Sources& sources) {
  std::vector<std::string> documents;
  std::set<std::string> known;
  for (const auto& term : computing_terms(sources.foldoc)) {
    if (term.text.size() < 30 || !known.insert(term.text).second) continue;  // several headwords of one entry
    documents.push_back(shortened(term.name + ": " + term.text, kMostBytes));
  }
  return documents;
}

std::vector<std::string> gcide_documents(const Sources& sources) {
  std::vector<std::string> documents;
  std::set<std::string_view> known;
  for (const auto& entry : sources.gcide) {
    // One entry in four is text enough for a tutorial.
    if (hash_text(entry.text) % 4 != 0 || !known.insert(entry.text).second) continue;
    std::string text = shortened(english_entry_text(entry), kMostBytes);
    if (text.size() >= 40) documents.push_back(std::move(text));
  }
  return documents;
}

std::vector<std::string> package_documents(const Sources& sources) {
  std::vector<std::string> documents;
  for (const auto& package : sources.packages) {
    if (!package.description.empty()) documents.push_back(package.name + ": " + package.description);
  }
  return documents;
}

std::vector<std::string> tokenizer_sentences(const Sources& sources) {
  std::vector<std::string> sentences;
  for (const auto& corpus : corpora()) {
    for (auto& document : corpus.documents(sources)) {
      if (hash_text(document, 5) % 4 == 0) sentences.push_back(shortened(document, 400));
    }
  }
  for (const auto* list :
       {&sources.english_french, &sources.french_english, &sources.dutch_english, &sources.spanish_english}) {
    for (const auto& entry : *list) sentences.push_back(entry.word + " " + entry.translation);
  }
  return sentences;
}

}  // namespace flanmoe::tutorial
