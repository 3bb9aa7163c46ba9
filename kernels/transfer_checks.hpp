// Checks of the operands of transfers, the same for every device.
#pragma once

#include "tensor/tensor.hpp"

namespace flanmoe {

inline void expect_transfer(const Tensor& to, const Tensor& from) {
  FLANMOE_EXPECT(
      to.batch == from.batch && to.rows == from.rows && to.cols == from.cols && to.contiguous() && from.contiguous(),
      "{} x {} x {} with stride {} from {} x {} x {} with stride {}", to.batch, to.rows, to.cols, to.stride, from.batch,
      from.rows, from.cols, from.stride);
}
inline void expect_same_type(const Tensor& to, const Tensor& from) {
  FLANMOE_EXPECT(to.dtype == from.dtype, "{} from {}", name_of(to.dtype), name_of(from.dtype));
}

}  // namespace flanmoe
