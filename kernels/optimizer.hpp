// Optimizer updates of one matrix (paper facts 4.8). All operands fp32 (A); sums in fp64.
#pragma once

#include "kernels/context.hpp"
#include "tensor/tensor.hpp"

namespace flanmoe {

struct AdamWStep {
  double learning_rate = 0, beta1 = 0.9, beta2 = 0.999, epsilon = 1e-8, weight_decay = 0;
  std::int64_t step = 0;        // 0 for the first update; bias corrections use step+1
  double gradient_scale = 1.0;  // clipping factor, applied to the gradient on reading
};

struct AdafactorStep {
  double learning_rate = 0;  // multiplied by max(RMS(p), epsilon2) when multiply_by_parameter_scale
  double decay = 0;          // beta of this step: 1 - (step+1)^(-decay_exponent)
  double epsilon1 = 1e-30, epsilon2 = 1e-3, clip_threshold = 1.0;
  bool multiply_by_parameter_scale = true;
  double weight_decay = 0;  // p -= learning_rate * weight_decay * p, decoupled; 0 in the paper
  double gradient_scale = 1.0;
};

struct OptimizerKernels {
  /// m = b1 m + (1-b1) g; v = b2 v + (1-b2) g^2; p -= lr (mhat/(sqrt(vhat)+eps) + wd p)  (Loshchilov & Hutter 2019).
  void (*adamw)(KernelContext&, const Tensor& p, const Tensor& m, const Tensor& v, const Tensor& g, const AdamWStep&);
  /// Factored second moment of one matrix (paper facts 4.8): row_factor has one entry per row (rows x 1), the mean of
  /// g^2+eps1 over columns; col_factor one per column (1 x cols), the mean over rows.
  /// u = g * rsqrt(row_factor / mean(row_factor)) * rsqrt(col_factor); u /= max(1, RMS(u)/clip); p -= alpha u.
  void (*adafactor_factored)(KernelContext&, const Tensor& p, const Tensor& row_factor, const Tensor& col_factor,
                             const Tensor& g, const AdafactorStep&);
  /// The same with a full second moment v of the shape of p: u = g * rsqrt(v).
  void (*adafactor_full)(KernelContext&, const Tensor& p, const Tensor& v, const Tensor& g, const AdafactorStep&);
  /// b (1 x E) moves by `rate` towards even counts: b += rate * sign(mean count - count), and stays where the count is
  /// the mean. Counts are whole numbers.
  void (*balance)(KernelContext&, const Tensor& b, const Tensor& count, double rate);
  /// Sum of squares in fp64 of a contiguous tensor, in blocks of fixed size summed by a binary tree of fixed shape. The
  /// result is for the host: on a GPU this waits for the stream.
  double (*sum_of_squares)(KernelContext&, const Tensor& x);
  /// Bytes of scratch that the update of a rows x cols matrix needs, and the sum of its squares.
  std::size_t (*scratch_bytes)(std::int64_t rows, std::int64_t cols);
};

}  // namespace flanmoe

namespace flanmoe::reference {
extern const OptimizerKernels optimizer_kernels;
}
namespace flanmoe::cpu {
extern const OptimizerKernels optimizer_kernels;
}
namespace flanmoe::cuda {
extern const OptimizerKernels optimizer_kernels;
}
