// Dropout whose mask is a function of (key, global row, position or expert, column block), never of the layout.
#pragma once

#include <cstdint>
#include <span>

#include "kernels/context.hpp"
#include "tensor/philox.hpp"
#include "tensor/tensor.hpp"

namespace flanmoe {

/// Mask of element (t, c): keep iff u >= rate, with u the 32-bit Philox word number (c/columns_per_mask) of the stream
/// addressed by (row_T[t], position_T[t]), as u = word / 2^32. Word w of that stream is element w%4 of the Philox block
/// key.words(row, position, w/4).
/// T5X shares masks over the length axis of a row: give every token of a row the same position. Attention-probability
/// dropout, shared over queries, is dropout of the rows of v with columns_per_mask = K.
struct DropoutMask {
  float rate = 0.0F;
  RandomKey key;
  std::span<const std::int64_t> row_T;
  std::span<const std::int32_t> position_T;
  int columns_per_mask = 1;
};

struct DropoutKernels {
  /// y = keep ? x/(1-rate) : 0.  y, x: the same type, C or A. y may be x. Applying it to a gradient is the backward.
  void (*apply)(KernelContext&, const Tensor& y_TD, const Tensor& x_TD, const DropoutMask&);
  /// residual_TD (A) += dropout(x_TD) (x: C or A); with rate 0 a plain addition that does not read row_T, position_T.
  void (*add)(KernelContext&, const Tensor& residual_TD, const Tensor& x_TD, const DropoutMask&);
};

}  // namespace flanmoe

namespace flanmoe::reference {
extern const DropoutKernels dropout_kernels;
}
namespace flanmoe::cpu {
extern const DropoutKernels dropout_kernels;
}
namespace flanmoe::cuda {
extern const DropoutKernels dropout_kernels;
}
