// Checks of the operands of optimizer updates, the same for every device.
#pragma once

#include "kernels/dispatch.hpp"
#include "kernels/optimizer.hpp"

namespace flanmoe {

/// row_factor is rows x 1 even where there are no rows.
inline bool is_factored(const AdafactorMatrix& matrix) { return matrix.row_factor.cols > 0; }

inline void expect_operands(const AdamWMatrix& matrix) {
  for (const Tensor* tensor : {&matrix.m, &matrix.v, &matrix.g}) expect_like(*tensor, matrix.p, "operand");
}
inline void expect_operands(const AdafactorMatrix& matrix) {
  const Tensor& p = matrix.p;
  expect_like(matrix.g, p, "g");
  if (is_factored(matrix)) {
    expect_matrix(matrix.row_factor, p.dtype, p.rows, 1, "row_factor");
    expect_matrix(matrix.col_factor, p.dtype, 1, p.cols, "col_factor");
  } else {
    expect_like(matrix.v, p, "v");
  }
}

/// Whether rounding is at random. The counter of a block of random numbers has 32 bits for eight elements.
inline bool rounds_at_random(const WeightCopy& copy, const RandomKey* rounding) {
  expect_matrix(copy.from, copy.from.dtype, copy.to.rows, copy.to.cols, "from");
  FLANMOE_EXPECT(copy.first >= 0 && copy.first + copy.to.size() <= std::int64_t{1} << 35, "elements [{}, {})",
                 copy.first, copy.first + copy.to.size());
  return rounding != nullptr && copy.to.dtype == DType::bf16 && copy.from.dtype == DType::f32;
}

}  // namespace flanmoe
