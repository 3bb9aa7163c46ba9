// Sparse upcycling: where the tensors of a sparse model start when their model begins as a dense one.
#pragma once

#include <optional>
#include <string>

#include "tensor/parameters.hpp"

namespace flanmoe {

enum class UpcycleFrom : std::uint8_t {
  same,          // the dense model has the tensor too
  feed_forward,  // an expert: a copy of the dense feed-forward that stood in its place
  fresh,         // a router and its bias: initial values, as in training from the seed
};

struct UpcycleSource {
  UpcycleFrom from = UpcycleFrom::same;
  ParameterSpec dense;  // what to read of the dense checkpoint; unused when fresh
};

/// "encoder/layer_01/feed_forward/expert_up" starts as a copy of "encoder/layer_01/feed_forward/up".
UpcycleSource upcycle_source(const ParameterSpec& spec);

}  // namespace flanmoe
