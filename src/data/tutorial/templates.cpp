#include "data/tutorial/templates.hpp"

#include <algorithm>
#include <set>

#include "base/error.hpp"

namespace flanmoe::tutorial {

Prompt zero_shot_prompt(const TemplateFile& file, const Template& chosen, const Item& item) {
  return {fill(file, chosen, chosen.input, item), fill(file, chosen, chosen.target, item)};
}

Prompt few_shot_prompt(const TemplateFile& file, const Template& chosen, const Item& query,
                       const std::vector<const Item*>& exemplars) {
  const std::string cue = chosen.cue.empty() ? "" : " " + chosen.cue;
  std::string input;
  for (const Item* exemplar : exemplars) {
    const Prompt shown = zero_shot_prompt(file, chosen, *exemplar);
    input += shown.input + cue + " " + shown.target + " " + file.separator + " ";
  }
  const Prompt asked = zero_shot_prompt(file, chosen, query);
  return {input + asked.input + cue, asked.target};
}

std::vector<const Item*> choose_exemplars(const std::vector<const Item*>& from, const Item& query, std::size_t count,
                                          Random& random) {
  std::vector<const Item*> chosen;
  const auto usable = [&](const Item* item) {
    if (item->key == query.key) return false;
    return std::none_of(chosen.begin(), chosen.end(), [&](const Item* other) { return other->key == item->key; });
  };
  for (int attempt = 0; attempt < 100 && chosen.size() < count && !from.empty(); ++attempt) {
    const Item* item = random.pick(from);
    if (usable(item)) chosen.push_back(item);
  }
  return chosen;
}

Split split_by_key(const Items& items, std::size_t most_test) {
  std::vector<const Item*> first_of_key;
  std::set<std::string_view> keys;
  for (const auto& item : items) {
    if (keys.insert(item.key).second) first_of_key.push_back(&item);
  }
  const std::size_t tested = std::min(most_test, first_of_key.size() / 4);
  constexpr std::uint64_t kSplitSeed = 1;  // not that of the hash by which items were chosen
  std::sort(first_of_key.begin(), first_of_key.end(), [](const Item* a, const Item* b) {
    const auto hash_a = hash_text(a->key, kSplitSeed), hash_b = hash_text(b->key, kSplitSeed);
    return hash_a != hash_b ? hash_a < hash_b : a->key < b->key;
  });
  first_of_key.resize(tested);
  Split split;
  split.test = first_of_key;
  std::set<std::string_view> test_keys;
  for (const Item* item : first_of_key) test_keys.insert(item->key);
  for (const auto& item : items) {
    if (!test_keys.contains(item.key)) split.train.push_back(&item);
  }
  return split;
}

}  // namespace flanmoe::tutorial
