// Token embedding.
#pragma once

#include "kernels/context.hpp"
#include "tensor/tensor.hpp"

namespace flanmoe {

struct EmbeddingKernels {
  /// y_TD (A) = table_VD[ids_T] (table: C). ids_T: T x 1, i32, in [0, V): the caller has checked them.
  void (*forward)(KernelContext&, const Tensor& y_TD, const Tensor& table_VD, const Tensor& ids_T);
  /// dtable_VD (A) += dy_TD (A) summed over equal ids in token order (deterministic).
  void (*backward)(KernelContext&, const Tensor& dtable_VD, const Tensor& dy_TD, const Tensor& ids_T);
};

}  // namespace flanmoe

namespace flanmoe::reference {
extern const EmbeddingKernels embedding_kernels;
}
namespace flanmoe::cpu {
extern const EmbeddingKernels embedding_kernels;
}
namespace flanmoe::cuda {
extern const EmbeddingKernels embedding_kernels;
}
