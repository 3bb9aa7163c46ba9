// Optimizer updates (paper facts 4.8), on lists of matrices, which GPUs update together. All operands fp32 (A); sums in
// fp64.
#pragma once

#include <cstdint>
#include <span>

#include "kernels/context.hpp"
#include "tensor/philox.hpp"
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

/// One matrix with its moments, all of one shape.
struct AdamWMatrix {
  Tensor p, m, v, g;
  bool decays = true;  // whether weight_decay is for this one
};

/// One matrix with its second moment: factored, or of the shape of p.
struct AdafactorMatrix {
  Tensor p, g;
  Tensor row_factor, col_factor;  // rows x 1: the mean of g^2+eps1 over columns; 1 x cols: over rows
  Tensor v;                       // used without row_factor
  bool decays = true;
};

/// What write_weights does for one matrix, or for a piece of one whose elements begin at number `first` of it.
struct WeightCopy {
  Tensor to, from;              // of one shape
  std::uint64_t parameter = 0;  // hash_name of the parameter: with the expert and the element the place of its random
  std::uint32_t expert = 0;     // numbers, whatever the layout
  std::int64_t first = 0;
};

struct OptimizerKernels {
  /// m = b1 m + (1-b1) g; v = b2 v + (1-b2) g^2; p -= lr (mhat/(sqrt(vhat)+eps) + wd p)  (Loshchilov & Hutter 2019).
  void (*adamw)(KernelContext&, std::span<const AdamWMatrix>, const AdamWStep&);
  /// Factored second moment (paper facts 4.8):
  /// u = g * rsqrt(row_factor / mean(row_factor)) * rsqrt(col_factor); with a full one u = g * rsqrt(v).
  /// u /= max(1, RMS(u)/clip); p -= alpha u.
  void (*adafactor)(KernelContext&, std::span<const AdafactorMatrix>, const AdafactorStep&);
  /// b (1 x E) moves by `rate` towards even counts: b += rate * sign(mean count - count), and stays where the count is
  /// the mean. Counts are whole numbers.
  void (*balance)(KernelContext&, const Tensor& b, const Tensor& count, double rate);
  /// sums[i] = sum of squares in fp64 of the contiguous tensor x[i], in blocks of fixed size summed by a binary tree of
  /// fixed shape. The sums are in host memory: on a GPU this waits for the stream, once.
  void (*sums_of_squares)(KernelContext&, std::span<double> sums, std::span<const Tensor> x);
  /// to = from (A), in the type of `to` (C or A). Rounded to nearest even; with `rounding`, what goes from fp32 to bf16
  /// is rounded to one of its two neighbours, the nearer one more often, so that the mean is the number itself: the
  /// lower 16 bits of fp32 plus 16 random bits carry into the upper ones or not. Element i of the matrix takes half
  /// word i%8 of the block rounding->words(parameter, expert, i/8), the lower half of a word first. The same bits on
  /// every device and in every layout; numbers that bf16 holds, infinities and NaN stay what they are.
  void (*write_weights)(KernelContext&, std::span<const WeightCopy>, const RandomKey* rounding);
  /// Bytes of scratch that any list needs, of matrices up to rows x cols elements, and the sums of their squares.
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
