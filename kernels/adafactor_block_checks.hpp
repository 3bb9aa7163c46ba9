// What all implementations of adafactor_blocks.hpp refuse.
#pragma once

#include "kernels/adafactor_blocks.hpp"
#include "kernels/dispatch.hpp"

namespace flanmoe {

/// The operands that belong to a piece: factors and sums of the blocks of `piece`, `width` sums each.
inline void expect_piece(const Tensor& piece, const Tensor& row_factor, const BlockCut& cut) {
  FLANMOE_EXPECT(cut.block_rows > 0 && piece.rows <= cut.rows, "{} rows of {}, in blocks of {}", piece.rows, cut.rows,
                 cut.block_rows);
  expect_matrix(row_factor, piece.dtype, piece.rows, 1, "row_factor");
}
inline void expect_sums(const Tensor& sums, std::int64_t rows, std::int64_t width, const char* name) {
  expect_matrix(sums, DType::f64, rows, width, name);
  FLANMOE_EXPECT(sums.contiguous(), "{}: {} columns with stride {}", name, sums.cols, sums.stride);
}
inline void expect_sums_operands(const Tensor& sums, const Tensor& row_factor, const Tensor& p, const Tensor& g,
                                 const BlockCut& cut) {
  expect_piece(p, row_factor, cut);
  expect_like(g, p, "g");
  expect_sums(sums, cut.blocks(p.rows), p.cols + 2, "sums");
}
inline void expect_update_operands(const Tensor& row_factor, const Tensor& col_factor, const Tensor& g,
                                   const Tensor& totals, const BlockCut& cut) {
  expect_piece(g, row_factor, cut);
  expect_matrix(col_factor, g.dtype, 1, g.cols, "col_factor");
  expect_sums(totals, 1, g.cols + 2, "totals");
}
inline void expect_totals(const Tensor& totals, const Tensor& sums) {
  expect_sums(totals, totals.rows, sums.cols, "totals");
  expect_sums(sums, sums.rows, sums.cols, "sums");
}

}  // namespace flanmoe
