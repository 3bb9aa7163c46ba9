// Checks of the operands of cross-entropy, the same for every device.
#pragma once

#include "kernels/cross_entropy.hpp"
#include "kernels/matmul_checks.hpp"

namespace flanmoe {

inline std::int64_t vocabulary_of(const Tensor& w, const CrossEntropyShape& shape) {
  return shape.transpose_w == Transpose::yes ? w.rows : w.cols;
}

inline void expect_token_values(const Tensor& x_T, std::int64_t tokens, DType dtype, const char* name) {
  FLANMOE_EXPECT(x_T.batch == 1 && x_T.rows == tokens && x_T.cols == 1 && x_T.dtype == dtype,
                 "{}: {} x {} of {}, expected {} x 1 of {}", name, x_T.rows, x_T.cols, name_of(x_T.dtype), tokens,
                 name_of(dtype));
}

inline void check_cross_entropy(const Tensor& nll_T, const Tensor& z_T, const Tensor& hit_T, const Tensor& dx_TD,
                                const Tensor& dw, const Tensor& x_TD, const Tensor& w, const Tensor& target_T,
                                const CrossEntropyShape& shape) {
  const DType a = accumulate_dtype(x_TD.dtype);
  expect_token_values(nll_T, x_TD.rows, a, "nll");
  expect_token_values(z_T, x_TD.rows, a, "z");
  expect_token_values(hit_T, x_TD.rows, a, "hit");
  expect_token_values(target_T, x_TD.rows, DType::i32, "target");
  const std::int64_t width = shape.transpose_w == Transpose::yes ? w.cols : w.rows;
  FLANMOE_EXPECT(w.batch == 1 && width == x_TD.cols && w.dtype == x_TD.dtype,
                 "weights {} x {} of {} for width {} of {}", w.rows, w.cols, name_of(w.dtype), x_TD.cols,
                 name_of(x_TD.dtype));
  FLANMOE_EXPECT(shape.chunk_rows > 0, "chunks of {} rows", shape.chunk_rows);
  FLANMOE_EXPECT(shape.beta == 0.0F || shape.beta == 1.0F, "beta is {}, not 0 or 1", shape.beta);
  if (shape.leaves.size() > 2) {
    expect_leaves(shape.leaves, 1, x_TD.rows);
    FLANMOE_EXPECT(x_TD.rows <= shape.chunk_rows, "{} tokens in {} leaves, more than the {} of a chunk", x_TD.rows,
                   shape.leaves.size() - 1, shape.chunk_rows);
  }
  if (dx_TD.absent()) return;
  FLANMOE_EXPECT(dx_TD.rows == x_TD.rows && dx_TD.cols == x_TD.cols && dx_TD.dtype == x_TD.dtype,
                 "dx {} x {} of {} for x {} x {}", dx_TD.rows, dx_TD.cols, name_of(dx_TD.dtype), x_TD.rows, x_TD.cols);
  if (dw.absent()) return;
  FLANMOE_EXPECT(dw.rows == w.rows && dw.cols == w.cols && dw.dtype == a, "dw {} x {} of {} for w {} x {}", dw.rows,
                 dw.cols, name_of(dw.dtype), w.rows, w.cols);
}

/// Where the host sees them: every target is a word.
inline void expect_targets(const Tensor& target_T, std::int64_t vocabulary) {
  for (std::int64_t t = 0; t < target_T.rows; ++t) {
    const std::int32_t target = *target_T.row<std::int32_t>(t);
    FLANMOE_EXPECT(target >= 0 && target < vocabulary, "target {} of token {} in a vocabulary of {}", target, t,
                   vocabulary);
  }
}

}  // namespace flanmoe
