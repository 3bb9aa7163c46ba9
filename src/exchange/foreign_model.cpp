#include <algorithm>
#include <cstring>
#include <filesystem>
#include <set>

#include "base/error.hpp"
#include "exchange/exchange.hpp"
#include "exchange/flax.hpp"
#include "exchange/hf_config.hpp"
#include "exchange/json_file.hpp"
#include "exchange/safetensors.hpp"
#include "model/model.hpp"

namespace flanmoe {
namespace {

/// Deck sizes come from a file: refuses a model of more matrices than there are tensors before their names are made.
void refuse_too_large(const Deck& deck, const TensorTable& table, const std::string& path) {
  const std::int64_t layers = deck.model.encoder_layers + deck.model.decoder_layers;
  const std::int64_t experts = deck.moe.router == "none" ? 1 : deck.moe.experts;
  if (std::int64_t(table.size()) < layers || std::int64_t(table.size()) < experts) {
    fail("{}: a model of {} layers and {} experts has more tensors than the {} that are there", path, layers, experts,
         table.size());
  }
}

Deck deck_of(const std::string& text, const std::string& path) {
  return parse_deck_text(fmt::format("{}: the deck of this model", path), text, {});
}

}  // namespace

ForeignModel::ForeignModel(Deck deck, std::vector<TensorPlace> places, std::unique_ptr<TensorSource> source,
                           const std::string& path)
    : deck_(std::move(deck)),
      specs_(model_parameters(deck_.model, deck_.moe)),
      places_(std::move(places)),
      source_(std::move(source)) {
  std::size_t next = 0;
  for (const ParameterSpec& spec : specs_) {
    first_place_.push_back(next);
    next += std::size_t(spec.experts);
  }
  const TensorTable& table = source_->tensors();
  for (TensorPlace& place : places_) {
    // The values may stand under an alias alone.
    for (auto& alias : place.aliases) {
      if (!table.contains(place.name) && table.contains(alias)) std::swap(place.name, alias);
    }
  }
  check_names(path);
  check_aliases();
}

void ForeignModel::check_names(const std::string& path) const {
  const TensorTable& table = source_->tensors();
  std::vector<std::string> problems;
  std::set<std::string_view> known;
  for (const TensorPlace& place : places_) {
    const auto found = table.find(place.name);
    known.insert(place.name);
    known.insert(place.aliases.begin(), place.aliases.end());
    if (found == table.end()) {
      problems.push_back(fmt::format("{}: tensor {} is missing; expected it with shape {}", path, place.name,
                                     shape_text(place.shape)));
    } else if (found->second.shape != place.shape) {
      problems.push_back(fmt::format("{}: tensor {} has shape {}; this model needs {}", found->second.file, place.name,
                                     shape_text(found->second.shape), shape_text(place.shape)));
    } else if (found->second.type == ElementType::other) {
      problems.push_back(fmt::format("{}: tensor {} holds elements of type {}; expected fp32, bf16 or fp16",
                                     found->second.file, place.name, found->second.type_name));
    }
  }
  for (const auto& [name, tensor] : table) {
    if (!known.contains(name) && !is_unused_in_hf(name)) {
      problems.push_back(fmt::format("{}: tensor {} is extra; this model has none of that name", tensor.file, name));
    }
  }
  if (problems.empty()) return;
  constexpr std::size_t kShown = 5;
  const std::size_t left = problems.size() - std::min(problems.size(), kShown);
  problems.resize(problems.size() - left);
  if (left > 0) problems.push_back(fmt::format("and {} more", left));
  fail("{}", fmt::join(problems, "\n"));
}

void ForeignModel::check_aliases() const {
  const TensorTable& table = source_->tensors();
  std::vector<float> values, others;
  for (const TensorPlace& place : places_) {
    for (const std::string& alias : place.aliases) {
      const auto found = table.find(alias);
      if (found == table.end()) continue;
      if (found->second.shape != place.shape) {
        fail("{}: tensor {} has shape {}; expected the values of {}, with shape {}", found->second.file, alias,
             shape_text(found->second.shape), place.name, shape_text(place.shape));
      }
      values.resize(std::size_t(found->second.size()));
      others.resize(values.size());
      source_->read(place.name, values);
      source_->read(alias, others);
      // Bits, so that a NaN equals itself.
      if (std::memcmp(values.data(), others.data(), 4 * values.size()) != 0) {
        fail("{}: tensor {} has other values than {}; the model has one tensor for both", found->second.file, alias,
             place.name);
      }
    }
  }
}

void ForeignModel::read(int parameter, std::int64_t expert, const Tensor& matrix) const {
  const TensorPlace& place = places_[first_place_[std::size_t(parameter)] + std::size_t(expert)];
  const ParameterSpec& spec = specs_[std::size_t(parameter)];
  FLANMOE_EXPECT(place.parameter == parameter && place.expert == expert && matrix.size() == spec.matrix_size(),
                 "{} elements for {}", matrix.size(), place.name);
  if (!place.transposed) return source_->read(place.name, matrix.flat<float>());
  std::vector<float> stored(std::size_t(spec.matrix_size()));
  source_->read(place.name, stored);
  transpose(matrix.flat<float>(), stored, place.shape[0], place.shape[1]);
}

ForeignModel open_hf(const std::string& folder) {
  return open_hf_tensors((std::filesystem::path(folder) / "config.json").string(), folder);
}

ForeignModel open_hf_tensors(const std::string& config_path, const std::string& path) {
  Deck deck = deck_of(deck_text_of_config(read_json(config_path), config_path), config_path);
  auto source = std::make_unique<Safetensors>(path);
  refuse_too_large(deck, source->tensors(), path);
  std::vector<TensorPlace> places = hf_layout(deck);
  return {std::move(deck), std::move(places), std::move(source), path};
}

ForeignModel open_t5x(const std::string& path) {
  auto source = std::make_unique<FlaxCheckpoint>(path);
  Deck deck = deck_of(deck_text_of_t5x(*source, path), path);
  std::vector<TensorPlace> places = t5x_layout(deck);
  return {std::move(deck), std::move(places), std::move(source), path};
}

}  // namespace flanmoe
