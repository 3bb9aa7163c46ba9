// Moving rows to the experts and back. Moves are exact; sums run in a fixed order, without atomics.
#pragma once

#include "kernels/context.hpp"
#include "tensor/tensor.hpp"

namespace flanmoe {

struct PermuteKernels {
  /// y_RD[r] = x_TD[index_R[r]] for every r < y.rows; index: R x 1, i32, every entry in [0, x.rows). Same type.
  void (*gather)(KernelContext&, const Tensor& y_RD, const Tensor& x_TD, const Tensor& index_R);
  /// y_TD[index_R[r]] = x_RD[r]: the inverse move of gather; index entries are distinct. Same type.
  void (*scatter)(KernelContext&, const Tensor& y_TD, const Tensor& x_RD, const Tensor& index_R);
  /// y_TD[t] (C) = sum over j ascending of weight_Tk[t][j] * row_ND[slot_Tk[t][j]], copies with slot -1 left out; a
  /// token without copies gets 0. row_ND: C, sums in A, weight: A.
  void (*combine_forward)(KernelContext&, const Tensor& y_TD, const Tensor& row_ND, const Tensor& weight_Tk,
                          const Tensor& slot_Tk);
  /// drow_ND[slot] (C) = weight * dy[t];  dweight_Tk (A) = <dy[t], row[slot]> in A, 0 where the slot is -1.
  void (*combine_backward)(KernelContext&, const Tensor& drow_ND, const Tensor& dweight_Tk, const Tensor& dy_TD,
                           const Tensor& row_ND, const Tensor& weight_Tk, const Tensor& slot_Tk);
  /// dx_TD[t] (C; may be base) = base + sum over j ascending of drow_ND[slot_Tk[t][j]], slot -1 left out; base_TD: C or
  /// absent (0).
  void (*gather_sum)(KernelContext&, const Tensor& dx_TD, const Tensor& drow_ND, const Tensor& slot_Tk,
                     const Tensor& base_TD);
};

}  // namespace flanmoe

namespace flanmoe::reference {
extern const PermuteKernels permute_kernels;
}
namespace flanmoe::cpu {
extern const PermuteKernels permute_kernels;
}
namespace flanmoe::cuda {
extern const PermuteKernels permute_kernels;
}
