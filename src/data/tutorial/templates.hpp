// Prompts of the tutorial: zero-shot and few-shot, and which items are asked in training and which in tests.
#pragma once

#include <cstddef>
#include <string>
#include <vector>

#include "data/templates.hpp"
#include "data/tutorial/items.hpp"

namespace flanmoe::tutorial {

struct Prompt {
  std::string input, target;
};

Prompt zero_shot_prompt(const TemplateFile& file, const Template& chosen, const Item& item);
Prompt few_shot_prompt(const TemplateFile& file, const Template& chosen, const Item& query,
                       const std::vector<const Item*>& exemplars);

/// Up to `count` items with different keys, none of them the query's.
std::vector<const Item*> choose_exemplars(const std::vector<const Item*>& from, const Item& query, std::size_t count,
                                          Random& random);

struct Split {
  std::vector<const Item*> train, test;
};
/// The keys with the smallest hashes are tested: at most `most_test` of them and a quarter of all keys, one item each.
/// All items of the other keys are for training.
Split split_by_key(const Items& items, std::size_t most_test);

}  // namespace flanmoe::tutorial
