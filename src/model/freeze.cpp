#include "model/freeze.hpp"

#include <algorithm>

#include "data/patterns.hpp"
#include "deck/table.hpp"
#include "model/model.hpp"

namespace flanmoe {
namespace {

const FreezeSet* find_set(const std::string& word) {
  const auto sets = freeze_sets();
  const auto found = std::find_if(sets.begin(), sets.end(), [&](const FreezeSet& set) { return set.name == word; });
  return found == sets.end() ? nullptr : &*found;
}

/// A word of optimizer.freeze: the name of a set, or a pattern.
bool freezes(const std::string& word, const std::string& parameter) {
  const FreezeSet* set = find_set(word);
  return set != nullptr ? set->contains(parameter) : matches_pattern(word, parameter);
}

/// The nearest set that this model has and the nearest parameter.
std::string nearest_words(const std::string& word, const std::vector<ParameterSpec>& specs) {
  std::vector<std::string> sets, names;
  for (const ParameterSpec& spec : specs) names.push_back(spec.name);
  for (const FreezeSet& set : freeze_sets()) {
    if (std::any_of(names.begin(), names.end(), [&](const auto& name) { return set.contains(name); }))
      sets.push_back(set.name);
  }
  return fmt::format("set {} or parameter {}", deck_detail::nearest_name(word, sets),
                     deck_detail::nearest_name(word, names));
}

}  // namespace

bool FreezeSet::contains(const std::string& parameter) const { return matches_any(patterns, parameter) != complement; }

std::span<const FreezeSet> freeze_sets() {
  static const std::vector<std::string> gate = {"*/feed_forward/router*"};
  static const std::vector<std::string> experts = {"*/feed_forward/expert_*", "*/feed_forward/shared_*"};
  static const std::vector<std::string> moe = {gate[0], experts[0], experts[1]};
  static const std::vector<FreezeSet> sets = {
      {"gate", gate},
      {"experts", experts},
      {"feed_forward", {"*feed_forward/gate", "*feed_forward/up", "*feed_forward/down", "*feed_forward/scale"}},
      {"attention",
       {"*_attention/query", "*_attention/key", "*_attention/value", "*_attention/output", "*/relative_bias"}},
      {"norms", {"*norm"}},
      {"embeddings", {"embedding", "logits"}},
      {"moe", moe},
      {"all_but_moe", moe, true},
  };
  return sets;
}

std::vector<std::string> freeze_problems(const Deck& deck) {
  std::vector<std::string> problems;
  const std::vector<ParameterSpec> specs = training_parameters(deck);
  for (const std::string& word : split_words(deck.optimizer.freeze)) {
    const auto matches = [&](const ParameterSpec& spec) { return freezes(word, spec.name); };
    if (std::none_of(specs.begin(), specs.end(), matches)) {
      problems.push_back(fmt::format(
          "optimizer.freeze: expected sets or patterns of parameters of this model, '{}' {}; nearest are {}", word,
          find_set(word) != nullptr ? "is a set of parameters that it does not have" : "matches none",
          nearest_words(word, specs)));
    }
  }
  if (std::none_of(specs.begin(), specs.end(), [](const auto& spec) { return spec.trained; })) {
    problems.push_back(fmt::format("optimizer.freeze = {} freezes all {} parameters of the model: nothing is trained",
                                   deck.optimizer.freeze, specs.size()));
  }
  const auto still = std::find_if(specs.begin(), specs.end(), [](const auto& spec) {
    return !spec.trained && spec.name.ends_with("/router_bias");
  });
  if (still != specs.end()) {
    problems.push_back(
        fmt::format("moe.bias_rate = {} has no effect on {}, which optimizer.freeze = {} freezes; expected 0",
                    deck.moe.bias_rate, still->name, deck.optimizer.freeze));
  }
  return problems;
}

std::vector<ParameterSpec> training_parameters(const Deck& deck) {
  std::vector<ParameterSpec> specs = model_parameters(deck.model, deck.moe);
  for (const std::string& word : split_words(deck.optimizer.freeze)) {
    for (ParameterSpec& spec : specs) {
      if (freezes(word, spec.name)) spec.trained = false;
    }
  }
  const OptimizerDeck& optimizer = deck.optimizer;
  for (ParameterSpec& spec : specs) {
    if (optimizer.name == "adafactor" && !spec.factored(optimizer.factor_threshold)) continue;
    spec.block_rows = block_rows_of(spec.rows, spec.cols, optimizer.split_above);
  }
  return specs;
}

std::string describe_frozen(const std::vector<ParameterSpec>& parameters, const std::string& freeze) {
  std::int64_t frozen_tensors = 0, frozen = 0, all = 0;
  for (const ParameterSpec& spec : parameters) {
    all += spec.global_size();
    if (spec.trained) continue;
    frozen_tensors += 1;
    frozen += spec.global_size();
  }
  if (frozen_tensors == 0) return "";
  return fmt::format("frozen by optimizer.freeze = {}: {} of {} tensors, {} of {} parameters", freeze, frozen_tensors,
                     parameters.size(), frozen, all);
}

}  // namespace flanmoe
