// From a tensor's run-time element type to code compiled for it, and checks of operand shapes.
#pragma once

#include <type_traits>

#include "tensor/tensor.hpp"

namespace flanmoe {

/// The type A that goes with the compute type C: fp32 for bf16 and fp32, fp64 for fp64.
template <class C>
using accumulate_t = std::conditional_t<std::is_same_v<C, double>, double, float>;

inline float widen(bf16 x) { return float(x); }
inline float widen(float x) { return x; }
inline double widen(double x) { return x; }

/// Calls f(std::type_identity<T>{}) for the T of the list that is the tensor's element type.
template <class... Ts, class F>
void with_type(const Tensor& tensor, const char* name, F&& f) {
  const bool known =
      ((tensor.dtype == dtype_of<Ts>::value && (f(std::type_identity<Ts>{}), true)) || ...);  // NOLINT: a fold
  FLANMOE_EXPECT(known, "{} holds {}, which this operation does not take", name, name_of(tensor.dtype));
}

/// One rows x cols matrix of the given type, with memory unless it is empty.
inline void expect_matrix(const Tensor& tensor, DType dtype, std::int64_t rows, std::int64_t cols, const char* name) {
  FLANMOE_EXPECT(tensor.batch == 1 && tensor.rows == rows && tensor.cols == cols && tensor.stride >= cols,
                 "{} is {} x {} x {} with stride {}, expected {} x {}", name, tensor.batch, tensor.rows, tensor.cols,
                 tensor.stride, rows, cols);
  FLANMOE_EXPECT(tensor.dtype == dtype, "{} holds {}, expected {}", name, name_of(tensor.dtype), name_of(dtype));
  FLANMOE_EXPECT(!tensor.absent() || tensor.size() == 0, "{} is absent", name);
}
inline void expect_like(const Tensor& tensor, const Tensor& model, const char* name) {
  expect_matrix(tensor, model.dtype, model.rows, model.cols, name);
}

}  // namespace flanmoe
