// Rotary position embedding (Su et al. 2021; PaLM): the columns of a head are turned pairwise by an angle that grows
// with the position, so that the product of a query and a key depends on the distance of their positions only.
#pragma once

#include "kernels/context.hpp"
#include "tensor/tensor.hpp"

namespace flanmoe {

struct RotaryKernels {
  /// table_PK (A): row p holds cos(p w_i) in column i and sin(p w_i) in column K/2 + i, w_i = base^(-2i/K), i < K/2.
  void (*table)(KernelContext&, const Tensor& table_PK, double base);
  /// Every head (K columns) of x_TQ (C), in place: columns i and K/2 + i are turned by the angle of the token's
  /// position,
  ///   (a, b) -> (a cos - b sin, a sin + b cos).
  /// (The pairs of the paper are neighbours, 2i and 2i + 1: the same up to the order of the columns of two weights.)
  /// position_T: T x 1, i32, rows of the table.
  void (*forward)(KernelContext&, const Tensor& x_TQ, const Tensor& position_T, const Tensor& table_PK);
  /// The gradient by what was turned, in place: turns dx_TQ (C) back.
  void (*backward)(KernelContext&, const Tensor& dx_TQ, const Tensor& position_T, const Tensor& table_PK);
};

/// Checks of the operands, the same for every device.
inline void expect_rotary(const Tensor& x_TQ, const Tensor& position_T, const Tensor& table_PK) {
  FLANMOE_EXPECT(table_PK.cols > 0 && table_PK.cols % 2 == 0 && x_TQ.batch == 1 && x_TQ.cols % table_PK.cols == 0 &&
                     table_PK.dtype == accumulate_dtype(x_TQ.dtype),
                 "{} columns of {} turned by a table with {} of {}", x_TQ.cols, name_of(x_TQ.dtype), table_PK.cols,
                 name_of(table_PK.dtype));
  FLANMOE_EXPECT(position_T.rows == x_TQ.rows && position_T.cols == 1 && position_T.dtype == DType::i32,
                 "{} positions of {} for {} rows", position_T.rows, name_of(position_T.dtype), x_TQ.rows);
}
/// Of positions that the host can read.
inline void expect_positions(const Tensor& position_T, const Tensor& table_PK) {
  for (std::int64_t t = 0; t < position_T.rows; ++t) {
    const std::int32_t position = *position_T.row<std::int32_t>(t);
    FLANMOE_EXPECT(position >= 0 && position < table_PK.rows, "row {}: position {} of {}", t, position, table_PK.rows);
  }
}

}  // namespace flanmoe

namespace flanmoe::reference {
extern const RotaryKernels rotary_kernels;
}
namespace flanmoe::cpu {
extern const RotaryKernels rotary_kernels;
}
namespace flanmoe::cuda {
extern const RotaryKernels rotary_kernels;
}
