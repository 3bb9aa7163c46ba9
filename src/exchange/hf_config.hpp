// config.json of transformers, to the model part of a deck and back.
#pragma once

#include <nlohmann/json.hpp>
#include <string>

#include "deck/deck.hpp"

namespace flanmoe {

/// The sections [model] and [moe] of the deck of this model, as text. Throws Error naming file and key when a key is
/// missing or wrong, or says something that flanmoe does not compute.
std::string deck_text_of_config(const nlohmann::json& config, const std::string& path);

/// The config.json of a deck's model. Throws Error naming the deck's key when transformers has no such model.
nlohmann::json config_of_deck(const Deck& deck, bool bf16);

}  // namespace flanmoe
