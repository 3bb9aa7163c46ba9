// Small element-wise helpers.
#pragma once

#include "kernels/context.hpp"
#include "tensor/tensor.hpp"

namespace flanmoe {

struct ElementwiseKernels {
  /// y = x with conversion between f32, bf16 and f64 (round to nearest even). Shapes agree; strides are honoured.
  void (*convert)(KernelContext&, const Tensor& y, const Tensor& x);
  /// y += x; y: C or A, x: C or A.
  void (*add)(KernelContext&, const Tensor& y, const Tensor& x);
  /// x *= factor; any floating type.
  void (*scale)(KernelContext&, const Tensor& x, double factor);
  /// x = 0.
  void (*zero)(KernelContext&, const Tensor& x);
  /// sum (f64, 1 x 1) = the sum of x (n x 1), in fp64 and in an order that depends on n only.
  void (*sum)(KernelContext&, const Tensor& sum, const Tensor& x);
};

}  // namespace flanmoe

namespace flanmoe::reference {
extern const ElementwiseKernels elementwise_kernels;
}
namespace flanmoe::cpu {
extern const ElementwiseKernels elementwise_kernels;
}
namespace flanmoe::cuda {
extern const ElementwiseKernels elementwise_kernels;
}
