// Feed-forward activations: ReLU (T5 1.0), gated GELU (T5 1.1), gelu in its tanh form (flax default), and gated swish
// (SwiGLU; PaLM), swish(x) = x / (1 + e^-x).
#pragma once

#include "kernels/context.hpp"
#include "tensor/tensor.hpp"

namespace flanmoe {

struct ActivationKernels {
  /// y = max(x, 0); C. y may be x.
  void (*relu_forward)(KernelContext&, const Tensor& y_TF, const Tensor& x_TF);
  /// dx = dy where y > 0, else 0 (y is the forward's output); C. dx may be dy.
  void (*relu_backward)(KernelContext&, const Tensor& dx_TF, const Tensor& dy_TF, const Tensor& y_TF);
  /// y = gelu(gate) * up; C.
  void (*gated_gelu_forward)(KernelContext&, const Tensor& y_TF, const Tensor& gate_TF, const Tensor& up_TF);
  /// dgate, dup: C. dup may be dy.
  void (*gated_gelu_backward)(KernelContext&, const Tensor& dgate_TF, const Tensor& dup_TF, const Tensor& dy_TF,
                              const Tensor& gate_TF, const Tensor& up_TF);
  /// y = swish(gate) * up; C.
  void (*gated_swish_forward)(KernelContext&, const Tensor& y_TF, const Tensor& gate_TF, const Tensor& up_TF);
  /// dgate, dup: C. dup may be dy.
  void (*gated_swish_backward)(KernelContext&, const Tensor& dgate_TF, const Tensor& dup_TF, const Tensor& dy_TF,
                               const Tensor& gate_TF, const Tensor& up_TF);
};

}  // namespace flanmoe

namespace flanmoe::reference {
extern const ActivationKernels activation_kernels;
}
namespace flanmoe::cpu {
extern const ActivationKernels activation_kernels;
}
namespace flanmoe::cuda {
extern const ActivationKernels activation_kernels;
}
