// Templates: how an item becomes a prompt. Read from files of input/templates; the format is in its README.md.
#pragma once

#include <cstddef>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace flanmoe {

/// The question of a task before a template puts it into words.
struct Item {
  std::string key;  // what is asked about; items of one key stay on one side of the train/test split
  std::vector<std::pair<std::string, std::string>> fields;  // name and text, for the templates
  std::string answer;
  std::vector<std::string> choices;  // the answer among them; empty when the task has no choices
};
using Items = std::vector<Item>;

struct Template {
  std::string name, input, target = "{answer}";
  std::string cue;                // stands between input and target in few-shot prompts
  std::string head;               // stands once, before everything else
  bool chain_of_thought = false;  // the target reasons before it answers
  bool inverted = false;          // what is asked for is the question, or the reasoning
  bool explained = false;         // shows one exemplar with its explanation
  int line = 0;                   // of the section, for messages
};

struct TemplateFile {
  std::string path, task, category;
  std::string separator = "#";  // stands between the exemplars of a few-shot prompt
  bool held_out = false;        // recommended to be left out of training
  bool finetune = false;        // recommended for finetuning on one task
  std::vector<Template> templates;
};

/// Throws Error with path:line for unknown keys, missing values, a field that is not closed, or fewer than `least`
/// templates.
TemplateFile parse_templates(std::string_view text, const std::string& path, const std::string& task,
                             std::size_t least = 4);

/// Replaces each {field} of a pattern. Besides the fields of the item: {answer}, {options} ("a, b or c") and {list}
/// ("- a - b - c"). Throws Error naming the template when the item has no such field.
std::string fill(const TemplateFile& file, const Template& chosen, const std::string& pattern, const Item& item);

}  // namespace flanmoe
