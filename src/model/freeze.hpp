// Which parameters a run trains: optimizer.freeze names the others, by sets or by patterns of their names.
#pragma once

#include <span>
#include <string>
#include <vector>

#include "deck/deck.hpp"
#include "tensor/parameters.hpp"

namespace flanmoe {

/// A set of parameters that a deck can name. The basic sets (all but moe and all_but_moe) share out every parameter of
/// every model: each is in exactly one of them.
struct FreezeSet {
  std::string name;
  std::vector<std::string> patterns;  // of parameter names
  bool complement = false;            // everything that matches none of them
  bool contains(const std::string& parameter) const;
};
std::span<const FreezeSet> freeze_sets();

/// What is wrong with optimizer.freeze for the model of this deck, one line a problem: words that match no parameter,
/// with the nearest names, and words that together leave nothing to train.
std::vector<std::string> freeze_problems(const Deck& deck);

/// model_parameters() in which what optimizer.freeze names is not trained, and large matrices may have several owners
/// (optimizer.split_above; with Adafactor those that are factored).
std::vector<ParameterSpec> training_parameters(const Deck& deck);

/// "frozen by optimizer.freeze = gate: 4 of 52 tensors, 1024 of 88192 parameters"; empty when everything is trained.
std::string describe_frozen(const std::vector<ParameterSpec>& parameters, const std::string& freeze);

}  // namespace flanmoe
