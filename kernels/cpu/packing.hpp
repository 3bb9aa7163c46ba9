// Copies of matrix operands in the forms that TileKernel reads.
#pragma once

#include "kernels/cpu/tile_kernel.hpp"
#include "tensor/tensor.hpp"

namespace flanmoe::cpu {

/// A rectangle of op(m), for a matrix m that may be stored transposed: rows [row, row+rows), columns [col, col+cols).
struct Window {
  const Tensor* matrix = nullptr;
  bool transposed = false;
  std::int64_t row = 0, rows = 0, col = 0, cols = 0;
};

// dst holds elements of `type`, which is the type of the window, or f32 for a window in bf16.

/// dst (padded_rows x padded_depth, dense) = the window, zeros in the padding.
void pack_a(void* dst, DType type, const Window& a, std::int64_t padded_rows, std::int64_t padded_depth);

/// dst = the window packed as the layout says, for a tile of padded_depth x padded_cols; zeros in the padding.
void pack_b(void* dst, DType type, const Window& b, std::int64_t padded_depth, std::int64_t padded_cols,
            const PackedLayout& layout);

}  // namespace flanmoe::cpu
