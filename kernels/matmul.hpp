// Matrix products. On the cpu device every product runs in oneDNN with cached primitives.
#pragma once

#include <cstdint>
#include <span>

#include "kernels/context.hpp"
#include "tensor/tensor.hpp"

namespace flanmoe {

enum class Transpose : bool { no = false, yes = true };

/// Products with copies of weights in the order in which a processor reads them. One that has to bring weights into
/// that order for every product does it once for all products between two changes of the weights.
struct PackedKernels {
  /// Elements, in the type of the weight, of the copy of one op(w), K x N; 0 where there is none to gain from.
  std::int64_t (*size)(DType dtype, std::int64_t k, std::int64_t n);
  /// packed_eP (batch e, rows of size(...) elements, of w's type) = a copy of every op(w).  w: C.  With transpose_w,
  /// w[g] is stored N x K.
  void (*pack)(KernelContext&, const Tensor& packed_eP, const Tensor& w_eKN, Transpose transpose_w);
  /// MatmulKernels::grouped with those weights, with the same bits.
  void (*grouped)(KernelContext&, const Tensor& y_RN, const Tensor& x_RK, const Tensor& packed_eP,
                  std::span<const std::int64_t> first);
};

struct MatmulKernels {
  /// y_MN = op(a) . op(b) + beta*y.  a, b: C (both the same type) or A; y: C or A; beta 0 or 1 (beta 1 needs y of type
  /// A). Sums in A. `transpose_a`: a is stored K x M. `transpose_b`: b is stored N x K. Row strides are honoured.
  /// beta 0 never reads y.
  void (*product)(KernelContext&, const Tensor& y_MN, const Tensor& a, Transpose transpose_a, const Tensor& b,
                  Transpose transpose_b, float beta);

  /// For every group g: y rows [first[g], first[g+1]) = the same rows of x . op(w[g]).  `first` has w.batch+1 entries,
  /// ascending from 0 to R; empty groups are legal. x, w: C; y: C.  With transpose_w, w[g] is stored N x K.
  void (*grouped)(KernelContext&, const Tensor& y_RN, const Tensor& x_RK, const Tensor& w_eKN, Transpose transpose_w,
                  std::span<const std::int64_t> first);

  /// For every group g: dw[g] = x rows(g)^T . dy rows(g) + beta*dw[g].  x, dy: C.  dw is given as one fp32 (A) matrix
  /// per group, since gradients of experts need not be adjacent. beta 0 or 1; 0 never reads dw, and an empty group's is
  /// 0.
  /// `first` has groups * leaves + 1 entries, ascending from 0 to R: the rows of a group are cut into leaves, the same
  /// power of two of them for each. The product of a leaf has the same bits whatever the others hold, and they are
  /// added along one binary tree.
  void (*grouped_weight_gradient)(KernelContext&, std::span<const Tensor> dw_KN, const Tensor& x_RK,
                                  const Tensor& dy_RN, std::span<const std::int64_t> first, float beta);

  /// Null on devices that read weights as they are.
  const PackedKernels* packed;

  /// Bytes of scratch that any of these takes at most, whatever the sizes; on cpu it grows with the number of threads.
  std::size_t (*scratch_bytes)();
};

}  // namespace flanmoe

namespace flanmoe::reference {
extern const MatmulKernels matmul_kernels;
}
namespace flanmoe::cpu {
extern const MatmulKernels matmul_kernels;
}
namespace flanmoe::cuda {
extern const MatmulKernels matmul_kernels;
}
