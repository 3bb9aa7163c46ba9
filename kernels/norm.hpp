// RMSNorm (T5X layers.py): y = x * rsqrt(mean(x^2) + epsilon) * scale, statistics in A; and LayerNorm without a bias
// (PaLM, which has no bias in any layer): the same of x - mean(x).
#pragma once

#include "kernels/context.hpp"
#include "tensor/tensor.hpp"

namespace flanmoe {

struct NormKernels {
  /// y_TD: C. rstd_T (T x 1, A) is saved for the backward; may be absent. x_TD: A (the residual stream). scale_D (1 x
  /// D): A.
  void (*forward)(KernelContext&, const Tensor& y_TD, const Tensor& rstd_T, const Tensor& x_TD, const Tensor& scale_D,
                  float epsilon);
  /// dx_TD (A) += ; dscale_D (A) += unless absent; dy_TD: C.
  void (*backward)(KernelContext&, const Tensor& dx_TD, const Tensor& dscale_D, const Tensor& dy_TD, const Tensor& x_TD,
                   const Tensor& rstd_T, const Tensor& scale_D);
  /// Bytes of scratch that backward needs for at most so many tokens.
  std::size_t (*scratch_bytes)(std::int64_t tokens, std::int64_t width);
};

}  // namespace flanmoe

namespace flanmoe::reference {
extern const NormKernels norm_kernels, layer_norm_kernels;
}
namespace flanmoe::cpu {
extern const NormKernels norm_kernels, layer_norm_kernels;
}
namespace flanmoe::cuda {
extern const NormKernels norm_kernels, layer_norm_kernels;
}
