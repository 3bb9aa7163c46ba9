#include "data/tutorial/wordnet.hpp"

#include <charconv>

#include "base/error.hpp"
#include "data/text.hpp"

namespace flanmoe::tutorial {

namespace {

constexpr const char* kFileNames[4] = {"noun", "verb", "adj", "adv"};

/// Fields of a line between single blanks, with messages that say where they stand.
class Fields {
 public:
  Fields(std::string_view line, const std::string& where) : line_(line), where_(where) {}
  std::string_view next(const char* what) {
    while (!line_.empty() && line_.front() == ' ') line_.remove_prefix(1);
    if (line_.empty()) fail("{}: the line ends where {} is expected", where_, what);
    const std::size_t end = std::min(line_.find(' '), line_.size());
    const std::string_view field = line_.substr(0, end);
    line_.remove_prefix(end);
    return field;
  }
  std::int64_t number(const char* what, int base = 10) {
    const std::string_view field = next(what);
    std::int64_t value = 0;
    const auto [end, error] = std::from_chars(field.data(), field.data() + field.size(), value, base);
    if (error != std::errc{} || end != field.data() + field.size()) {
      fail("{}: expected {}, a number in base {}, found \"{}\"", where_, what, base, field);
    }
    return value;
  }
  WordClass word_class(const char* what) {
    const std::string_view field = next(what);
    if (field == "n") return WordClass::noun;
    if (field == "v") return WordClass::verb;
    if (field == "a" || field == "s") return WordClass::adjective;
    if (field == "r") return WordClass::adverb;
    fail("{}: expected {} (n, v, a, s or r), found \"{}\"", where_, what, field);
  }
  std::string_view rest() const { return line_; }

 private:
  std::string_view line_;
  const std::string& where_;
};

/// "meaning; more; "example"; "example"" is cut into the meaning and the examples.
void parse_gloss(std::string_view text, Synset& synset) {
  const std::size_t quote = text.find('"');
  std::string gloss = collapse_spaces(text.substr(0, quote));
  while (!gloss.empty() && (gloss.back() == ';' || gloss.back() == ' ' || gloss.back() == ':')) gloss.pop_back();
  synset.gloss = std::move(gloss);
  for (std::size_t begin = quote; begin != std::string_view::npos;) {
    const std::size_t end = text.find('"', begin + 1);
    if (end == std::string_view::npos) return;
    synset.examples.push_back(collapse_spaces(text.substr(begin + 1, end - begin - 1)));
    begin = text.find('"', end + 1);
  }
}

void read_data(const std::string& folder, WordClass word_class, WordNet& wordnet) {
  const std::string path = folder + "/data." + kFileNames[int(word_class)];
  std::int64_t number = 0;
  for (const std::string& line : split(read_whole_file(path), '\n')) {
    ++number;
    if (line.empty() || line.front() == ' ') continue;  // the licence stands in lines that start with a blank
    wordnet.add(parse_synset(line, word_class, fmt::format("{}:{}", path, number)));
  }
}

void read_index(const std::string& folder, WordClass word_class, WordNet& wordnet) {
  const std::string path = folder + "/index." + kFileNames[int(word_class)];
  std::int64_t number = 0;
  for (const std::string& line : split(read_whole_file(path), '\n')) {
    ++number;
    if (line.empty() || line.front() == ' ') continue;
    const std::string where = fmt::format("{}:{}", path, number);
    Fields fields(line, where);
    const std::string word(fields.next("the word"));
    fields.word_class("the part of speech");
    fields.number("the number of senses");
    const std::int64_t symbols = fields.number("the number of relation symbols");
    for (std::int64_t i = 0; i < symbols; ++i) fields.next("a relation symbol");
    fields.number("the number of senses");
    const std::int64_t tagged = fields.number("the number of senses in the tagged corpus");
    const std::int64_t offset = fields.number("the offset of the first sense");
    wordnet.first_sense[int(word_class)][word] = {wordnet.find(word_class, offset), tagged > 0};
  }
}

}  // namespace

const char* name_of(WordClass word_class) {
  constexpr const char* kNames[4] = {"noun", "verb", "adjective", "adverb"};
  return kNames[int(word_class)];
}

std::size_t WordNet::find(WordClass word_class, std::int64_t offset) const {
  const auto& table = by_offset_[int(word_class)];
  const auto at = table.find(offset);
  if (at == table.end()) fail("WordNet: no {} synset at offset {}", name_of(word_class), offset);
  return at->second;
}

void WordNet::add(Synset synset) {
  by_offset_[int(synset.word_class)][synset.offset] = synsets.size();
  synsets.push_back(std::move(synset));
}

Synset parse_synset(std::string_view line, WordClass word_class, const std::string& where) {
  const std::size_t bar = line.find(" | ");
  if (bar == std::string_view::npos) fail("{}: expected a gloss after \" | \", found none", where);
  Fields fields(line.substr(0, bar), where);
  Synset synset;
  synset.word_class = word_class;
  synset.offset = fields.number("the synset offset");
  synset.file_number = int(fields.number("the lexicographer file number"));
  if (fields.word_class("the synset type") != word_class) fail("{}: expected a {}", where, name_of(word_class));
  const std::int64_t words = fields.number("the number of words", 16);
  for (std::int64_t i = 0; i < words; ++i) {
    std::string_view word = fields.next("a word");
    if (word.back() == ')') word = word.substr(0, word.find('('));  // syntactic mark: "galore(ip)"
    synset.words.push_back(replace_all(std::string(word), "_", " "));
    fields.number("the word's lexicographer number", 16);
  }
  const std::int64_t relations = fields.number("the number of relations");
  for (std::int64_t i = 0; i < relations; ++i) {
    Relation relation;
    relation.symbol = std::string(fields.next("a relation symbol"));
    relation.offset = fields.number("the offset of a related synset");
    relation.word_class = fields.word_class("the part of speech of a related synset");
    const std::int64_t pair = fields.number("source and target of a relation", 16);
    relation.source = int(pair >> 8);
    relation.target = int(pair & 0xFF);
    synset.relations.push_back(std::move(relation));
  }
  parse_gloss(line.substr(bar + 3), synset);
  return synset;
}

WordNet read_wordnet(const std::string& folder) {
  WordNet wordnet;
  for (const auto word_class : {WordClass::noun, WordClass::verb, WordClass::adjective, WordClass::adverb}) {
    read_data(folder, word_class, wordnet);
  }
  for (const auto word_class : {WordClass::noun, WordClass::verb, WordClass::adjective, WordClass::adverb}) {
    read_index(folder, word_class, wordnet);
  }
  return wordnet;
}

}  // namespace flanmoe::tutorial
