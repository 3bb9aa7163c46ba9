// Where another program keeps each matrix of a model: names, shapes and orientation.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "deck/deck.hpp"

namespace flanmoe {

/// One matrix of a flanmoe parameter as another program stores it.
struct TensorPlace {
  int parameter = 0;  // index in model_parameters()
  std::int64_t expert = 0;
  std::string name;
  std::vector<std::int64_t> shape;   // as stored there
  bool transposed = false;           // stored with rows and columns exchanged
  std::vector<std::string> aliases;  // other names that may stand in a file for the same values
};

/// All matrices of the model, in the order of model_parameters() and of experts.
///
/// Hugging Face (transformers 4, modeling_t5.py and modeling_switch_transformers.py): matrices of linear layers are
/// [out, in], the table of relative biases is [buckets, heads], the embedding stands as shared.weight.
std::vector<TensorPlace> hf_layout(const Deck& deck);
/// T5X (t5x/examples/t5/network.py): matrices are [in, out], attention heads already flattened; the table of relative
/// biases is [heads, buckets]. Dense models only.
std::vector<TensorPlace> t5x_layout(const Deck& deck);

/// Tensors that transformers itself leaves aside when it loads a T5.
bool is_unused_in_hf(const std::string& name);

}  // namespace flanmoe
