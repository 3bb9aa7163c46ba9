// From records to prompts: variants, templates, exemplars and length limits.
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "data/flan/options.hpp"
#include "data/formats/formats.hpp"
#include "data/shard.hpp"
#include "data/templates.hpp"
#include "data/tokenizer.hpp"

namespace flanmoe::flan {

/// A way to ask.
struct Variant {
  const char* name;
  enum class Kind { direct, reasoned, inverted, explained } kind;
  bool few_shot, options;
  const char* sentence;
};
const std::vector<Variant>& variants();
/// Throws UsageError at `where` with the nearest name.
const Variant& find_variant(const std::string& name, const std::string& where);

/// Tokens, as the sequence lengths of the FLAN collection.
struct PromptLimits {
  std::int64_t input_tokens = 2048, target_tokens = 512;  // with EOS: longer ones are cut
  std::int64_t few_shot_tokens = 1920;                    // exemplars are added while they fit
};

/// What happened to the records of a task.
struct PromptCounts {
  std::map<std::string, std::int64_t> examples;  // per variant
  std::int64_t cut = 0;                          // inputs or targets over the limit
  std::int64_t without_exemplars = 0;            // few-shot prompts for which no exemplar was drawn, or none fits
  std::int64_t empty = 0;                        // no token on one side, or nothing to compare with
};

/// The fields of a record for templates. `style` lists the choices in {choices}; without one that field is empty.
Item item_of(const formats::Record& record, const OptionStyle* style);
/// The input and target of one prompt, in text: head, exemplars (oldest first), query.
struct PromptText {
  std::string input, target;
};
PromptText write_prompt(const TemplateFile& file, const Template& chosen, const Item& query,
                        const std::vector<std::pair<const Template*, Item>>& exemplars);

/// Makes the training prompts of a task. Everything that is drawn follows from the task's name and the record's place.
class PromptMaker {
 public:
  PromptMaker(const TemplateFile& templates, const formats::FileContent& content, const std::string& task,
              const Tokenizer& tokenizer, const PromptLimits& limits);
  /// Every record, or the first `share` of them, once in a variant, in shuffled order, through the templates in
  /// rotation. A variant that the templates or the records do not support gives no examples.
  void make(const Variant& variant, const std::function<void(Example&&)>& add, double share = 1);
  const PromptCounts& counts() const { return counts_; }

 private:
  using Shown = std::vector<std::pair<const Template*, Item>>;
  std::vector<const Template*> templates_for(const Variant& variant) const;
  Item query_item(const formats::Record& record, const Variant& variant, const OptionStyle* style,
                  Random& random) const;
  Shown draw_exemplars(std::size_t query, const Template& chosen, const std::vector<const Template*>& templates,
                       const Variant& variant, const OptionStyle* style, Random& random) const;
  std::optional<Example> example_of(const Template& chosen, const Item& item, Shown exemplars, bool few_shot);

  const TemplateFile& templates_;
  const formats::FileContent& content_;
  std::string task_;
  const Tokenizer& tokenizer_;
  PromptLimits limits_;
  PromptCounts counts_;
};

}  // namespace flanmoe::flan
