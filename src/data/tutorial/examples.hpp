// From items to tokenised examples of a shard.
#pragma once

#include <cstdint>
#include <map>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "data/shard.hpp"
#include "data/tokenizer.hpp"
#include "data/tutorial/templates.hpp"

namespace flanmoe::tutorial {

struct ExampleLimits {
  std::size_t train_examples = 6000;  // per task, all variants together
  std::size_t test_examples = 200;    // per task and variant
  std::size_t zero_shot_tokens = 80, few_shot_tokens = 160, target_tokens = 48;
};

/// What was made of one task.
struct TaskSummary {
  std::string task, category;
  bool held_out = false, finetune = false;
  std::map<std::string, std::int64_t> train, test;  // examples per variant
  std::int64_t templates = 0, items = 0, too_long = 0;
  double mean_input_tokens = 0, mean_target_tokens = 0;  // of the training examples
};

/// Examples of a task: zero-shot and few-shot, with and without chain of thought where the templates have it. Test
/// examples carry their choices (those without chain of thought). Examples over the limits are left out and counted.
std::vector<Example> make_examples(const TemplateFile& file, const Items& items, const Tokenizer& tokenizer,
                                   const ExampleLimits& limits, TaskSummary& summary);

nlohmann::json to_json(const TaskSummary& summary);
TaskSummary summary_from_json(const nlohmann::json& json);

}  // namespace flanmoe::tutorial
