#include "data/flan/evaluation.hpp"

#include <algorithm>

#include "base/error.hpp"

namespace flanmoe::flan {
namespace {

using formats::Record;
using Kind = Variant::Kind;

class Maker {
 public:
  Maker(const Source& source, const EvaluationParts& parts, const formats::FileContent& content,
        const Tokenizer& tokenizer, const PromptLimits& limits, PromptCounts& counts)
      : source_(source), parts_(parts), content_(content), tokenizer_(tokenizer), limits_(limits), counts_(counts) {}

  void make(const Variant& variant, const std::function<void(Example&&)>& add) {
    Template chosen = template_for(variant);
    if (!parts_.prompt.empty()) chosen.head.clear();  // the prompt of a file brings its own
    const auto exemplars = exemplars_for(variant, chosen);
    for (const Record& released : content_.records) {
      Record record = released;
      if (record.definition.empty()) record.definition = parts_.exemplars.facts.definition;
      Example example = example_of(record, chosen, exemplars);
      const bool has_answer = record.gold >= 0 || !record.answers.front().empty();
      if (example.input.empty() || !has_answer) {
        ++counts_.empty;
        continue;
      }
      if (variant.kind == Kind::direct && !record.choices.empty()) add_choices(record, chosen, example);
      set_answers(record, variant, example);
      example.variant = variant.name;
      example.template_name = chosen.name;
      ++counts_.examples[variant.name];
      add(std::move(example));
    }
  }

 private:
  using Shown = std::vector<std::pair<const Template*, Item>>;

  const Template& template_for(const Variant& variant) const {
    for (const Template& each : parts_.templates.templates) {
      const bool fits = !each.inverted && !each.explained && each.chain_of_thought == (variant.kind == Kind::reasoned);
      if (fits) return each;
    }
    usage_fail("{}: {} has no template for the variant {}", source_.where, parts_.templates.path, variant.name);
  }

  Shown exemplars_for(const Variant& variant, const Template& chosen) const {
    Shown shown;
    if (!variant.few_shot || !parts_.prompt.empty()) return shown;
    for (const Record& record : parts_.exemplars.records) {
      if (std::int64_t(shown.size()) == source_.shots) break;
      shown.emplace_back(&chosen, item_of(record, &style_));
    }
    if (std::int64_t(shown.size()) < source_.shots || shown.empty()) {
      usage_fail("{}: [{}] asks for {} exemplars in its variant {}, found {}", source_.where, source_.name,
                 source_.shots, variant.name, shown.size());
    }
    return shown;
  }

  Example example_of(const Record& record, const Template& chosen, Shown exemplars) {
    const auto most_input = std::size_t(limits_.input_tokens - 1), most_target = std::size_t(limits_.target_tokens - 1);
    Example example;
    PromptText text;
    const Item item = item_of(record, &style_);
    const bool few_shot = !exemplars.empty();
    for (;; exemplars.pop_back()) {
      text = write_prompt(parts_.templates, chosen, item, exemplars);
      if (!parts_.prompt.empty()) text.input = with_prompt(chosen, text.input);
      // A few-shot prompt that lost all its exemplars still asks in their form.
      if (few_shot && exemplars.empty() && !chosen.cue.empty()) text.input.append("\n").append(chosen.cue);
      example.input = tokenizer_.encode(text.input);
      if (example.input.size() <= most_input || exemplars.empty()) break;
    }
    example.target = tokenizer_.encode(text.target);
    if (example.input.size() > most_input || example.target.size() > most_target) ++counts_.cut;
    // The end of the prompt is what asks: a prompt over the limit loses its beginning.
    if (example.input.size() > most_input) {
      example.input.erase(example.input.begin(), example.input.end() - std::ptrdiff_t(most_input));
    }
    if (example.target.size() > most_target) example.target.resize(most_target);
    return example;
  }

  /// The prompt of a file, then the question with its cue.
  std::string with_prompt(const Template& chosen, const std::string& question) const {
    return fmt::format("{}\n\n{}{}{}", parts_.prompt, question, chosen.cue.empty() ? "" : "\n", chosen.cue);
  }

  /// Each choice is the target that the template would make of it.
  void add_choices(const Record& record, const Template& chosen, Example& example) {
    Record each = record;
    for (std::size_t c = 0; c < record.choices.size(); ++c) {
      each.gold = std::int32_t(c);
      each.answers = {record.labels[c].empty() ? record.choices[c] : record.labels[c]};
      const std::string target = write_prompt(parts_.templates, chosen, item_of(each, &style_), {}).target;
      example.choices.push_back(tokenizer_.encode(target));
      example.choice_bytes.push_back(std::int32_t(target.size()));
    }
    if (record.gold >= 0) {
      example.gold = record.gold;
    } else {
      // The right answer is none of the choices (the released files have such records): ranking cannot score it.
      example.choices.clear();
      example.choice_bytes.clear();
    }
  }

  void set_answers(const Record& record, const Variant& variant, Example& example) const {
    const bool by_choice = variant.kind == Kind::direct && record.gold >= 0;
    const std::string letter = record.gold >= 0 ? record.labels[std::size_t(record.gold)] : "";
    example.answer = by_choice && letter.empty() ? record.choices[std::size_t(record.gold)] : record.answers.front();
    if (!by_choice) example.more_answers.assign(record.answers.begin() + 1, record.answers.end());
  }

  const Source& source_;
  const EvaluationParts& parts_;
  const formats::FileContent& content_;
  const Tokenizer& tokenizer_;
  const PromptLimits& limits_;
  PromptCounts& counts_;
  const OptionStyle style_;  // the plain list
};

}  // namespace

void make_evaluation(const Source& source, const EvaluationParts& parts, const formats::FileContent& content,
                     const Tokenizer& tokenizer, const PromptLimits& limits, PromptCounts& counts,
                     const std::function<void(Example&&)>& add) {
  Maker maker(source, parts, content, tokenizer, limits, counts);
  for (const std::string& name : source.variants) maker.make(find_variant(name, source.where), add);
}

}  // namespace flanmoe::flan
