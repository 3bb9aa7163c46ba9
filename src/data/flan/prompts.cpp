#include "data/flan/prompts.hpp"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "base/error.hpp"
#include "deck/table.hpp"

namespace flanmoe::flan {
namespace {

using formats::Record;
using Kind = Variant::Kind;

// Few-shot prompts of one template show the exemplars, out of so many drawn, that come with that template by chance.
constexpr std::size_t kDrawn = 25;
// Few-shot prompts of mixed templates show so many.
constexpr std::size_t kMixed = 5;
// Exemplars of a task that brings its own.
constexpr std::size_t kDemonstrations = 2;

std::string lettered(const Record& record) {
  std::string out;
  for (std::size_t c = 0; c < record.choices.size(); ++c) {
    out += fmt::format("{}{}. {}", c == 0 ? "" : "\n", char('A' + c % 26), record.choices[c]);
  }
  return out;
}

std::string bracketed(const Record& record) {
  std::string out;
  for (std::size_t c = 0; c < record.choices.size(); ++c) {
    out += fmt::format("{}({}) {}", c == 0 ? "" : " ", char('A' + c % 26), record.choices[c]);
  }
  return out;
}

/// The cue, and what follows it, with one blank between unless the cue ends its line.
std::string after_cue(const std::string& cue, const std::string& text) {
  if (cue.empty()) return fmt::format("\n{}", text);
  return fmt::format("\n{}{}{}", cue, cue.ends_with('\n') ? "" : " ", text);
}

}  // namespace

const std::vector<Variant>& variants() {
  static const std::vector<Variant> all = {
      {"zero_shot", Kind::direct, false, true, "the question, with its options where it has some"},
      {"zero_shot_no_options", Kind::direct, false, false, "questions that have options, without them"},
      {"few_shot", Kind::direct, true, true, "exemplars first"},
      {"few_shot_no_options", Kind::direct, true, false, "exemplars first, without options"},
      {"cot", Kind::reasoned, false, true, "the target reasons, then answers"},
      {"cot_few_shot", Kind::reasoned, true, true, "the same after exemplars"},
      {"cot_inverted", Kind::inverted, false, true, "the target is the question, the reasoning or the answer with it"},
      {"cot_inverted_few_shot", Kind::inverted, true, true, "the same after exemplars"},
      {"one_shot_explained", Kind::explained, false, true, "one exemplar of the task with its explanation"},
  };
  return all;
}

const Variant& find_variant(const std::string& name, const std::string& where) {
  std::vector<std::string> names;
  for (const Variant& variant : variants()) {
    if (variant.name == name) return variant;
    names.emplace_back(variant.name);
  }
  usage_fail("{}: there is no variant '{}'; nearest: {}", where, name, deck_detail::nearest_name(name, names));
}

Item item_of(const Record& record, const OptionStyle* style) {
  Item item;
  item.key = record.key;
  item.answer = record.answers.empty() ? "" : record.answers.front();
  const bool listed = style != nullptr && !record.choices.empty();
  if (record.gold >= 0) {
    // In a list whose markers are names the answer is the marker; otherwise its text.
    item.answer = listed && style->names_choices() ? marker_of(*style, std::size_t(record.gold))
                                                   : record.choices[std::size_t(record.gold)];
  }
  const std::string letter = record.gold >= 0 ? std::string(1, char('A' + record.gold % 26)) : "";
  item.fields = {{"question", record.question},
                 {"as_written", record.question_as_written},
                 {"context", record.context},
                 {"rationale", record.rationale},
                 {"definition", record.definition},
                 {"choices", listed ? option_list(*style, record.choices) : ""},
                 {"lettered", lettered(record)},
                 {"bracketed", bracketed(record)},
                 {"letter", letter},
                 {"released_answer", record.answers.empty() ? "" : record.answers.front()},
                 {"name", replace_all(record.task, "_", " ")}};
  return item;
}

PromptText write_prompt(const TemplateFile& file, const Template& chosen, const Item& query,
                        const std::vector<std::pair<const Template*, Item>>& exemplars) {
  std::string input = chosen.head.empty() ? "" : fill(file, chosen, chosen.head, query) + "\n\n";
  for (const auto& [shown, item] : exemplars) {
    input += fill(file, *shown, shown->input, item) + after_cue(shown->cue, fill(file, *shown, shown->target, item)) +
             file.separator;
  }
  input += fill(file, chosen, chosen.input, query);
  if (!exemplars.empty() && !chosen.cue.empty()) input.append("\n").append(chosen.cue);
  return {std::string(trim(input)), std::string(trim(fill(file, chosen, chosen.target, query)))};
}

PromptMaker::PromptMaker(const TemplateFile& templates, const formats::FileContent& content, const std::string& task,
                         const Tokenizer& tokenizer, const PromptLimits& limits)
    : templates_(templates), content_(content), task_(task), tokenizer_(tokenizer), limits_(limits) {}

std::vector<const Template*> PromptMaker::templates_for(const Variant& variant) const {
  std::vector<const Template*> fitting;
  for (const Template& each : templates_.templates) {
    const Kind kind = each.explained          ? Kind::explained
                      : each.inverted         ? Kind::inverted
                      : each.chain_of_thought ? Kind::reasoned
                                              : Kind::direct;
    if (kind == variant.kind) fitting.push_back(&each);
  }
  return fitting;
}

Item PromptMaker::query_item(const Record& record, const Variant& variant, const OptionStyle* style,
                             Random& random) const {
  Item item = item_of(record, style);
  if (record.gold < 0 && record.answers.size() > 1) item.answer = random.pick(record.answers);
  if (variant.kind == Kind::explained) {
    const formats::Demonstration& shown = random.pick(content_.facts.demonstrations);
    item.fields.insert(
        item.fields.end(),
        {{"example_input", shown.input}, {"example_output", shown.output}, {"example_explanation", shown.explanation}});
  }
  return item;
}

/// Exemplars are other records with other questions. A task that brings exemplars shows two of those.
PromptMaker::Shown PromptMaker::draw_exemplars(std::size_t query, const Template& chosen,
                                               const std::vector<const Template*>& templates, const Variant& variant,
                                               const OptionStyle* style, Random& random) const {
  Shown shown;
  const Record& asked = content_.records[query];
  const auto& own = content_.facts.demonstrations;
  if (!own.empty()) {
    std::vector<const formats::Demonstration*> all;
    for (const auto& each : own) {
      if (trim(each.input) != trim(asked.question)) all.push_back(&each);
    }
    random.shuffle(all);
    if (all.size() > kDemonstrations) all.resize(kDemonstrations);
    for (const formats::Demonstration* each : all) {
      Record record;
      record.question = record.question_as_written = each->input;
      record.answers = {each->output};
      record.definition = asked.definition;
      shown.emplace_back(&chosen, item_of(record, nullptr));
    }
    return shown;
  }
  // Templates are mixed where options are listed or reasons given, not in direct prompts without options.
  const bool may_mix = variant.options || variant.kind != Kind::direct;
  const bool mixed = random.below(2) == 1 && may_mix;
  std::vector<std::size_t> used;
  for (std::size_t drawn = 0; drawn < (mixed ? kMixed : kDrawn); ++drawn) {
    const auto i = std::size_t(random.below(std::int64_t(content_.records.size())));
    const Template* through = random.pick(templates);
    const Record& record = content_.records[i];
    const bool same =
        record.question == asked.question && record.context == asked.context && record.choices == asked.choices;
    if (i == query || same || std::find(used.begin(), used.end(), i) != used.end()) continue;
    if (!mixed && through != &chosen) continue;
    used.push_back(i);
    shown.emplace_back(through, query_item(record, variant, style, random));
  }
  return shown;
}

/// Tokens of the prompt with as many of the first exemplars as fit; no example when none does.
std::optional<Example> PromptMaker::example_of(const Template& chosen, const Item& item, Shown exemplars,
                                               bool few_shot) {
  Example example;
  PromptText text;
  for (;; exemplars.pop_back()) {
    if (few_shot && exemplars.empty()) {
      ++counts_.without_exemplars;
      return std::nullopt;
    }
    text = write_prompt(templates_, chosen, item, exemplars);
    example.input = tokenizer_.encode(text.input);
    if (!few_shot || std::int64_t(example.input.size()) <= limits_.few_shot_tokens) break;
  }
  example.target = tokenizer_.encode(text.target);
  if (example.input.empty() || example.target.empty()) {
    ++counts_.empty;
    return std::nullopt;
  }
  const auto most_input = std::size_t(limits_.input_tokens - 1), most_target = std::size_t(limits_.target_tokens - 1);
  if (example.input.size() > most_input || example.target.size() > most_target) {
    ++counts_.cut;
    example.input.resize(std::min(example.input.size(), most_input));
    example.target.resize(std::min(example.target.size(), most_target));
  }
  example.answer = item.answer;
  return example;
}

void PromptMaker::make(const Variant& variant, const std::function<void(Example&&)>& add, double share) {
  const auto templates = templates_for(variant);
  const bool explained = variant.kind == Kind::explained;
  if (templates.empty() || (explained && content_.facts.demonstrations.empty())) return;
  std::vector<std::size_t> order(content_.records.size());
  std::iota(order.begin(), order.end(), 0);
  Random(fmt::format("{}/{}", task_, variant.name), 1).shuffle(order);
  order.resize(std::size_t(std::ceil(share * double(order.size()))));
  for (std::size_t i = 0; i < order.size(); ++i) {
    const Record& record = content_.records[order[i]];
    if (!variant.options && record.choices.empty()) continue;
    if (variant.kind != Kind::direct && variant.kind != Kind::explained && record.rationale.empty()) continue;
    Random random(fmt::format("{}/{}/{}", task_, variant.name, order[i]), 2);
    const OptionStyle style = draw_style(random);
    const OptionStyle* listed = variant.options ? &style : nullptr;
    const Template& chosen = *templates[i % templates.size()];
    const Item item = query_item(record, variant, listed, random);
    Shown exemplars;
    if (variant.few_shot) exemplars = draw_exemplars(order[i], chosen, templates, variant, listed, random);
    auto example = example_of(chosen, item, std::move(exemplars), variant.few_shot);
    if (!example) continue;
    example->variant = variant.name;
    example->template_name = chosen.name;
    ++counts_.examples[variant.name];
    add(std::move(*example));
  }
}

}  // namespace flanmoe::flan
