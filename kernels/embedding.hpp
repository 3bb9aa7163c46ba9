// Token embedding.
#pragma once

#include <algorithm>
#include <bit>
#include <cstdint>
#include <span>

#include "kernels/context.hpp"
#include "tensor/tensor.hpp"

namespace flanmoe {

struct EmbeddingKernels {
  /// y_TD (A) = table_VD[ids_T] (table: C). ids_T: T x 1, i32, in [0, V): the caller has checked them.
  void (*forward)(KernelContext&, const Tensor& y_TD, const Tensor& table_VD, const Tensor& ids_T);
  /// dtable_VD (A) += dy_TD (A) summed over equal ids in token order (deterministic). `leaves`: boundaries of a power
  /// of two of leaves of the tokens, ascending from 0 to T; sums of a leaf begin at 0 and are added along one binary
  /// tree. Empty, or one leaf: tokens are added to dtable one after the other.
  void (*backward)(KernelContext&, const Tensor& dtable_VD, const Tensor& dy_TD, const Tensor& ids_T,
                   std::span<const std::int64_t> leaves);
  /// Bytes of scratch that backward needs for at most so many tokens.
  std::size_t (*scratch_bytes)(std::int64_t tokens);
};

inline void expect_token_leaves(std::span<const std::int64_t> leaves, std::int64_t tokens) {
  if (leaves.empty()) return;
  FLANMOE_EXPECT(leaves.size() > 1 && std::has_single_bit(leaves.size() - 1) && leaves.front() == 0 &&
                     leaves.back() == tokens && std::is_sorted(leaves.begin(), leaves.end()),
                 "{} boundaries, from {} to {}, do not cut {} tokens into a power of two of leaves", leaves.size(),
                 leaves.front(), leaves.back(), tokens);
}

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
