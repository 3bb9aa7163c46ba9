// Templates: how an item becomes a prompt. Read from input/templates/TASK.txt; the format is in its README.md.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "data/tutorial/items.hpp"

namespace flanmoe::tutorial {

struct Template {
  std::string name, input, target = "{answer}";
  std::string cue;                // stands between input and target in few-shot prompts
  bool chain_of_thought = false;  // the target reasons before it answers
  int line = 0;                   // of the section, for messages
};

struct TemplateFile {
  std::string path, task, category;
  std::string separator = "#";  // stands between the exemplars of a few-shot prompt
  bool held_out = false;        // recommended to be left out of training
  bool finetune = false;        // recommended for finetuning on one task
  std::vector<Template> templates;
};

/// Throws Error with path:line for unknown keys, missing values, a field that is not closed, or fewer than 4 templates.
TemplateFile parse_templates(std::string_view text, const std::string& path, const std::string& task);

struct Prompt {
  std::string input, target;
};

/// Replaces each {field} of a pattern. Besides the fields of the item: {answer}, {options} ("a, b or c") and {list}
/// ("- a - b - c"). Throws Error naming the template when the item has no such field.
std::string fill(const TemplateFile& file, const Template& chosen, const std::string& pattern, const Item& item);

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
