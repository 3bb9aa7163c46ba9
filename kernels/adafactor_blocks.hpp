// Adafactor with factors (paper facts 4.8) of a matrix that several ranks may own, each some blocks of its rows. Sums
// are made block by block, and those of blocks are added in the order of the blocks, so that the bits do not depend on
// who owns what. Matrices are fp32 (A), sums and totals fp64. A step of a matrix: `sums` of every piece, `add` over all
// its blocks, `update_sums` of every piece, `add`, `apply` of every piece.
#pragma once

#include "kernels/optimizer.hpp"

namespace flanmoe {

/// How a matrix of `rows` rows is cut: block b has the rows [b * block_rows, (b+1) * block_rows), the last one fewer.
/// A piece is some whole blocks in sequence.
struct BlockCut {
  std::int64_t rows = 0, block_rows = 0;
  std::int64_t blocks(std::int64_t piece_rows) const { return (piece_rows + block_rows - 1) / block_rows; }
};

struct AdafactorBlockKernels {
  /// Updates row_factor (rows x 1 of the piece) and fills sums (blocks x (cols + 2)) of its blocks: of g^2+eps1 over
  /// the rows for every column, of row_factor, and of p^2.
  void (*sums)(KernelContext&, const Tensor& sums, const Tensor& row_factor, const Tensor& p, const Tensor& g,
               const BlockCut&, const AdafactorStep&);
  /// Updates col_factor (1 x cols) from the totals (1 x (cols + 2)) of the matrix and fills sums (blocks x 1): of u^2
  /// with u = g * rsqrt(row_factor / mean(row_factor)) * rsqrt(col_factor).
  void (*update_sums)(KernelContext&, const Tensor& sums, const Tensor& row_factor, const Tensor& col_factor,
                      const Tensor& g, const Tensor& totals, const BlockCut&, const AdafactorStep&);
  /// p -= alpha u / max(1, RMS(u)/clip) and the decay; update_total (1 x 1) is the sum of u^2 over the matrix.
  void (*apply)(KernelContext&, const Tensor& p, const Tensor& row_factor, const Tensor& col_factor, const Tensor& g,
                const Tensor& totals, const Tensor& update_total, const BlockCut&, const AdafactorStep&);
  /// Every row of `totals` (any number x n) becomes the sum of the rows of `sums` (blocks x n), in their order.
  void (*add)(KernelContext&, const Tensor& totals, const Tensor& sums);
  /// Bytes of scratch that any of these needs for a piece of rows x cols.
  std::size_t (*scratch_bytes)(std::int64_t rows, std::int64_t cols);
};

}  // namespace flanmoe

namespace flanmoe::reference {
extern const AdafactorBlockKernels adafactor_block_kernels;
}
namespace flanmoe::cpu {
extern const AdafactorBlockKernels adafactor_block_kernels;
}
namespace flanmoe::cuda {
extern const AdafactorBlockKernels adafactor_block_kernels;
}
