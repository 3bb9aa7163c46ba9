// How big a deck's model is, and how much arithmetic a token costs, before anything is allocated.
#pragma once

#include <cstdint>
#include <string>

#include "deck/deck.hpp"

namespace flanmoe {

struct ModelSize {
  std::int64_t total = 0;    // parameters, embeddings included
  std::int64_t active = 0;   // what one token uses: of the experts of a sparse layer, those that it is sent to
  std::int64_t trained = 0;  // without what optimizer.freeze names
  /// Forward floating-point operations per token, by two counts.
  double published_flops = 0;  // as published tables count, see published_pair_flops(); 0 for decoder-only models
  double counted_flops = 0;    // as this program counts its own steps (train/flops.hpp), in full rows of this deck
};
ModelSize model_size(const Deck& deck);

/// Forward floating-point operations of one pretraining pair of 512 encoder and 114 decoder tokens as the published
/// tables count them (paper facts 1.8: Switch Transformers, table 9, to three digits): a multiply-add is two, a token
/// is sent to k experts whatever the capacity (where experts choose, to moe.capacity_factor of them on average), the
/// products of queries and keys count and those with values do not, the keys and values of cross attention are counted
/// at the decoder's positions, routers are not counted.
double published_pair_flops(const ModelDeck& model, const MoeDeck& moe);

/// The size as text, a line a figure.
std::string describe_size(const Deck& deck);

}  // namespace flanmoe
