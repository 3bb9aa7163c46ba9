// Logits, cross-entropy and output z-loss in one operation, chunk by chunk, so that T x V logits never exist.
#pragma once

#include <cstdint>
#include <span>

#include "kernels/context.hpp"
#include "kernels/matmul.hpp"
#include "tensor/tensor.hpp"

namespace flanmoe {

struct CrossEntropyShape {
  Transpose transpose_w = Transpose::no;  // yes: w is V x D (tied to the embedding), no: w is D x V
  double logit_scale = 1.0;               // logits = logit_scale * x.w (1/sqrt(D) when tied; T5X)
  double z_coefficient = 0.0;             // output z-loss: z * logsumexp^2
  double gradient_scale = 1.0;            // 1 / (global number of target tokens): multiplies both gradients
  std::int64_t chunk_rows = 256;          // tokens whose logits exist at one time
  float beta = 1.0F;                      // what is left of dw: 1 adds to it, 0 never reads it
  /// Boundaries of a power of two of leaves of the tokens, ascending from 0 to T: dw is the sum of those of the leaves
  /// along one binary tree. Several leaves must fit into one chunk; empty: one leaf.
  std::span<const std::int64_t> leaves = {};
};

struct CrossEntropyKernels {
  /// For each token: nll_T = logsumexp - logit[target], z_T = z_coefficient*logsumexp^2, hit_T = 1 if the target is the
  /// (first) largest logit else 0; all T x 1, A. Logits and softmax in A (fp32).
  /// Gradients: dlogit = gradient_scale*((1 + 2*z_coefficient*logsumexp)*softmax - onehot) (paper facts 4.2);
  /// dx_TD (C) = dlogit . w^T * logit_scale; dw (A) = x^T . dlogit * logit_scale + beta*dw. In bf16 runs dlogit is
  /// rounded to bf16 before the two products. With dx absent no gradient is computed (evaluation); with dw absent only
  /// dx is. x_TD: C. w: C. target_T: T x 1, i32.
  void (*forward_backward)(KernelContext&, const Tensor& nll_T, const Tensor& z_T, const Tensor& hit_T,
                           const Tensor& dx_TD, const Tensor& dw, const Tensor& x_TD, const Tensor& w,
                           const Tensor& target_T, const CrossEntropyShape&);
  /// Bytes of scratch that forward_backward needs.
  std::size_t (*scratch_bytes)(std::int64_t tokens, std::int64_t vocabulary, DType compute, const CrossEntropyShape&);
};

}  // namespace flanmoe

namespace flanmoe::reference {
extern const CrossEntropyKernels cross_entropy_kernels;
}
namespace flanmoe::cpu {
extern const CrossEntropyKernels cross_entropy_kernels;
}
namespace flanmoe::cuda {
/// A target that is no word is not refused here, because the host does not see it: it makes nll_T NaN.
extern const CrossEntropyKernels cross_entropy_kernels;
}  // namespace flanmoe::cuda
