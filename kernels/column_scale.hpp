// A learned factor for every column, per group of rows: the multiplicative bias of feed-forwards (paper facts 4.7).
#pragma once

#include <cstdint>
#include <span>

#include "kernels/context.hpp"
#include "tensor/tensor.hpp"

namespace flanmoe {

struct ColumnScaleKernels {
  /// For every group g: y rows [first[g], first[g+1]) = the same rows of x, column f times scale[g][f]. x, y: C; scale:
  /// A, one row a group; `first` has scale.batch+1 entries, ascending from 0 to R. y may be x.
  void (*forward)(KernelContext&, const Tensor& y_RF, const Tensor& x_RF, const Tensor& scale_eF,
                  std::span<const std::int64_t> first);
  /// dscale[g] (A, 1 x F, one tensor a group) += the sum over the rows of g of dy * x; dx (C; may be dy) = dy * scale.
  void (*backward)(KernelContext&, const Tensor& dx_RF, std::span<const Tensor> dscale_F, const Tensor& dy_RF,
                   const Tensor& x_RF, const Tensor& scale_eF, std::span<const std::int64_t> first);
};

inline void expect_column_scale(const Tensor& y_RF, const Tensor& x_RF, const Tensor& scale_eF,
                                std::span<const std::int64_t> first) {
  FLANMOE_EXPECT(y_RF.dtype == x_RF.dtype && y_RF.rows == x_RF.rows && y_RF.cols == x_RF.cols,
                 "{} x {} of {} against {} x {} of {}", y_RF.rows, y_RF.cols, name_of(y_RF.dtype), x_RF.rows, x_RF.cols,
                 name_of(x_RF.dtype));
  FLANMOE_EXPECT(scale_eF.dtype == accumulate_dtype(x_RF.dtype) && scale_eF.rows == 1 && scale_eF.cols == x_RF.cols &&
                     std::int64_t(first.size()) == scale_eF.batch + 1 && first.front() == 0 &&
                     first.back() == x_RF.rows,
                 "{} x {} x {} factors for {} groups that end at row {} of {} x {}", scale_eF.batch, scale_eF.rows,
                 scale_eF.cols, first.size() - 1, first.back(), x_RF.rows, x_RF.cols);
}

}  // namespace flanmoe

namespace flanmoe::reference {
extern const ColumnScaleKernels column_scale_kernels;
}
namespace flanmoe::cpu {
extern const ColumnScaleKernels column_scale_kernels;
}
namespace flanmoe::cuda {
extern const ColumnScaleKernels column_scale_kernels;
}
