// What a rank keeps of a matrix that it owns, or of rows of one. Private to this folder.
#pragma once

#include "tensor/parameters.hpp"

namespace flanmoe {

/// Master and moments of a unit that live on this rank. Absent tensors are not used by the optimizer in use.
struct OwnedUnit {
  ParameterUnit unit;
  Tensor master;
  Tensor m, v;      // AdamW: both; Adafactor without factors: v
  Tensor row, col;  // Adafactor with factors; col is of the whole matrix, the same on all its owners
};

/// Weight decay shrinks matrices only; the table of relative biases is one by shape, not by meaning.
inline bool decays(const ParameterSpec& spec) { return spec.is_matrix() && !spec.name.ends_with("relative_bias"); }

}  // namespace flanmoe
