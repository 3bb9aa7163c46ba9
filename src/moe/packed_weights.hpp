// Which weights have a packed copy besides.
#pragma once

#include <cstdint>
#include <limits>
#include <vector>

#include "deck/deck.hpp"
#include "kernels/kernels.hpp"
#include "tensor/parameters.hpp"

namespace flanmoe {

/// A number of passes without an end: an evaluation's.
inline constexpr std::int64_t kAllPasses = std::numeric_limits<std::int64_t>::max();

/// For ParameterStore::lay: the matrices of experts with moe.packed_weights, on devices that have packed products. Few
/// tokens meet each of them in a microbatch, so bringing one into the processor's order costs a good part of its
/// product; dense weights meet all tokens. `uses`: passes between two changes of the weights; copies that serve fewer
/// than six save too little for their memory. `backward`: passes are forward and backward.
std::vector<PackedSizes> packed_sizes(const ParameterStore& store, const MoeDeck& moe, const Kernels& kernels,
                                      std::int64_t uses, bool backward);

}  // namespace flanmoe
