#include "data/tutorial/items.hpp"

#include <algorithm>
#include <map>

#include "base/error.hpp"

namespace flanmoe::tutorial {

const std::vector<Task>& tasks() {
  static const std::vector<Task> kTasks = {
      {"define_word", define_word},
      {"word_for_gloss", word_for_gloss},
      {"synonym", synonym},
      {"antonym", antonym},
      {"kind_of", kind_of},
      {"is_kind_of", is_kind_of},
      {"sort_of_thing", sort_of_thing},
      {"belongs_with", belongs_with},
      {"fill_blank", fill_blank},
      {"part_of_speech", part_of_speech},
      {"plural", plural},
      {"singular_or_plural", singular_or_plural},
      {"past_tense", past_tense},
      {"expand_acronym", expand_acronym},
      {"computing_subject", computing_subject},
      {"computing_term", computing_term},
      {"package_section", package_section},
      {"package_for_description", package_for_description},
      {"describe_package", describe_package},
      {"package_role", package_role},
      {"translate_english_french", translate_english_french},
      {"translate_french_english", translate_french_english},
      {"translate_dutch_english", translate_dutch_english},
      {"word_language", word_language},
      {"sums", sums},
      {"larger_number", larger_number},
      {"word_problem", word_problem},
  };
  return kTasks;
}

void draw_choices(Item& item, const std::vector<std::string>& pool, std::size_t wrong, Random& random,
                  const std::function<bool(const std::string&)>& refused) {
  std::vector<std::string> drawn;
  for (int attempt = 0; drawn.size() < wrong; ++attempt) {
    FLANMOE_EXPECT(attempt < 10000, "no {} wrong choices for \"{}\" in a pool of {}", wrong, item.key, pool.size());
    const std::string& text = random.pick(pool);
    const bool known = text == item.answer || std::find(drawn.begin(), drawn.end(), text) != drawn.end();
    if (!known && !(refused && refused(text))) drawn.push_back(text);
  }
  set_choices(item, std::move(drawn), random);
}

void set_choices(Item& item, std::vector<std::string> wrong, Random& random) {
  item.choices = std::move(wrong);
  item.choices.push_back(item.answer);
  random.shuffle(item.choices);
}

namespace {

void sort_by_hash(Items& items) {
  std::stable_sort(items.begin(), items.end(), [](const Item& a, const Item& b) {
    const auto hash_a = hash_text(a.key), hash_b = hash_text(b.key);
    return hash_a != hash_b ? hash_a < hash_b : a.key < b.key;
  });
}

}  // namespace

Items balanced(Items items, std::size_t each) {
  sort_by_hash(items);
  std::map<std::string, std::size_t> count, taken;
  for (const auto& item : items) ++count[item.answer];
  for (const auto& [answer, n] : count) each = std::min(each, n);
  std::erase_if(items, [&](const Item& item) { return ++taken[item.answer] > each; });
  return items;
}

Items limited(Items items, std::size_t limit) {
  sort_by_hash(items);
  if (items.size() > limit) items.resize(limit);
  return items;
}

}  // namespace flanmoe::tutorial
