#include "data/tutorial/examples.hpp"

#include <algorithm>

#include "base/error.hpp"

namespace flanmoe::tutorial {

namespace {

/// One of the ways to ask: how many exemplars, and with or without reasoning.
struct Variant {
  const char* name;
  bool few_shot, chain_of_thought;
  double share;  // of the training examples of its kind (with or without reasoning)
};
constexpr Variant kVariants[] = {
    {"zero_shot", false, false, 0.6},
    {"few_shot", true, false, 0.4},
    {"cot", false, true, 0.6},
    {"cot_few_shot", true, true, 0.4},
};

class Maker {
 public:
  Maker(const TemplateFile& file, const Items& items, const Tokenizer& tokenizer, const ExampleLimits& limits,
        TaskSummary& summary)
      : file_(file),
        tokenizer_(tokenizer),
        limits_(limits),
        summary_(summary),
        split_(split_by_key(items, limits.test_examples)),
        random_(file.task, 7) {}

  std::vector<Example> make() {
    const bool reasons = std::any_of(file_.templates.begin(), file_.templates.end(),
                                     [](const Template& each) { return each.chain_of_thought; });
    for (const Variant& variant : kVariants) {
      std::vector<const Template*> templates;
      for (const auto& each : file_.templates) {
        if (each.chain_of_thought == variant.chain_of_thought) templates.push_back(&each);
      }
      if (templates.empty()) continue;
      const double share = reasons ? variant.share / 2 : variant.share;
      make_variant(variant, templates, std::size_t(share * double(limits_.train_examples)));
    }
    return std::move(examples_);
  }

 private:
  void make_variant(const Variant& variant, const std::vector<const Template*>& templates, std::size_t most_train) {
    // The k-th time an item is asked, it is asked through its k-th template, so no prompt comes twice.
    std::vector<const Item*> order = split_.train;
    random_.shuffle(order);
    const std::size_t count = std::min(most_train, order.size() * templates.size());
    for (std::size_t i = 0; i < count; ++i) {
      const Item& item = *order[i % order.size()];
      const std::size_t turn = std::size_t(hash_text(item.key, 3) % templates.size()) + i / order.size();
      add(variant, *templates[turn % templates.size()], item, "train");
    }
    for (std::size_t i = 0; i < split_.test.size(); ++i) {
      add(variant, *templates[i % templates.size()], *split_.test[i], "test");
    }
  }

  void add(const Variant& variant, const Template& chosen, const Item& item, const char* split) {
    Example example;
    Prompt prompt;
    if (!variant.few_shot) {
      prompt = zero_shot_prompt(file_, chosen, item);
      example.input = tokenizer_.encode(prompt.input);
      if (example.input.size() > limits_.zero_shot_tokens) return too_long();
    } else {
      // Two or three exemplars; fewer when they do not fit.
      std::vector<const Item*> exemplars =
          choose_exemplars(split_.train, item, std::size_t(random_.between(2, 3)), random_);
      for (;; exemplars.pop_back()) {
        if (exemplars.empty()) return too_long();
        prompt = few_shot_prompt(file_, chosen, item, exemplars);
        example.input = tokenizer_.encode(prompt.input);
        if (example.input.size() <= limits_.few_shot_tokens) break;
      }
    }
    example.target = tokenizer_.encode(prompt.target);
    if (example.target.size() > limits_.target_tokens) return too_long();
    example.task = file_.task;
    example.category = file_.category;
    example.template_name = chosen.name;
    example.variant = variant.name;
    example.split = split;
    example.answer = item.answer;
    const bool tested = example.split == "test";
    if (tested && !variant.chain_of_thought) add_choices(item, example);
    ++(tested ? summary_.test : summary_.train)[variant.name];
    if (!tested) {
      input_tokens_ += double(example.input.size());
      target_tokens_ += double(example.target.size());
    }
    examples_.push_back(std::move(example));
    update_means();
  }

  void add_choices(const Item& item, Example& example) {
    for (const auto& choice : item.choices) {
      if (choice == item.answer) example.gold = std::int32_t(example.choices.size());
      example.choices.push_back(tokenizer_.encode(choice));
      example.choice_bytes.push_back(std::int32_t(choice.size()));
    }
    FLANMOE_EXPECT(item.choices.empty() || example.gold >= 0, "{}: \"{}\" is not among its choices", file_.task,
                   item.answer);
  }

  void too_long() { ++summary_.too_long; }

  void update_means() {
    std::int64_t train = 0;
    for (const auto& [variant, count] : summary_.train) train += count;
    summary_.mean_input_tokens = input_tokens_ / double(std::max<std::int64_t>(train, 1));
    summary_.mean_target_tokens = target_tokens_ / double(std::max<std::int64_t>(train, 1));
  }

  const TemplateFile& file_;
  const Tokenizer& tokenizer_;
  const ExampleLimits& limits_;
  TaskSummary& summary_;
  Split split_;
  Random random_;
  std::vector<Example> examples_;
  double input_tokens_ = 0, target_tokens_ = 0;
};

}  // namespace

std::vector<Example> make_examples(const TemplateFile& file, const Items& items, const Tokenizer& tokenizer,
                                   const ExampleLimits& limits, TaskSummary& summary) {
  if (items.size() < 20) fail("task {}: the sources gave {} items, expected at least 20", file.task, items.size());
  summary.task = file.task;
  summary.category = file.category;
  summary.held_out = file.held_out;
  summary.finetune = file.finetune;
  summary.templates = std::int64_t(file.templates.size());
  summary.items = std::int64_t(items.size());
  return Maker(file, items, tokenizer, limits, summary).make();
}

nlohmann::json to_json(const TaskSummary& summary) {
  return {{"task", summary.task},
          {"category", summary.category},
          {"held_out", summary.held_out},
          {"finetune", summary.finetune},
          {"templates", summary.templates},
          {"items", summary.items},
          {"train_examples", summary.train},
          {"test_examples", summary.test},
          {"too_long", summary.too_long},
          {"mean_input_tokens", summary.mean_input_tokens},
          {"mean_target_tokens", summary.mean_target_tokens}};
}

TaskSummary summary_from_json(const nlohmann::json& json) {
  TaskSummary summary;
  json.at("task").get_to(summary.task);
  json.at("category").get_to(summary.category);
  json.at("held_out").get_to(summary.held_out);
  json.at("finetune").get_to(summary.finetune);
  json.at("templates").get_to(summary.templates);
  json.at("items").get_to(summary.items);
  json.at("train_examples").get_to(summary.train);
  json.at("test_examples").get_to(summary.test);
  json.at("too_long").get_to(summary.too_long);
  json.at("mean_input_tokens").get_to(summary.mean_input_tokens);
  json.at("mean_target_tokens").get_to(summary.mean_target_tokens);
  return summary;
}

}  // namespace flanmoe::tutorial
