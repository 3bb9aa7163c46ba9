// Checks of the operands of matrix products, the same for every device.
#pragma once

#include <bit>

#include "kernels/matmul.hpp"

namespace flanmoe {

struct ProductSize {
  std::int64_t rows, inner, cols;
};

/// Sizes of y = op(a) . op(b); throws when shapes or types do not fit.
inline ProductSize product_size(const Tensor& y, const Tensor& a, Transpose transpose_a, const Tensor& b,
                                Transpose transpose_b) {
  const bool ta = transpose_a == Transpose::yes;
  const bool tb = transpose_b == Transpose::yes;
  const ProductSize size{ta ? a.cols : a.rows, ta ? a.rows : a.cols, tb ? b.rows : b.cols};
  FLANMOE_EXPECT(y.batch == 1 && a.batch == 1 && b.batch == 1, "a product takes single matrices, got batches {} {} {}",
                 y.batch, a.batch, b.batch);
  FLANMOE_EXPECT((tb ? b.cols : b.rows) == size.inner && y.rows == size.rows && y.cols == size.cols,
                 "y {} x {} = {} x {} ({}transposed) . {} x {} ({}transposed)", y.rows, y.cols, a.rows, a.cols,
                 ta ? "" : "not ", b.rows, b.cols, tb ? "" : "not ");
  const bool same = a.dtype == b.dtype && a.dtype != DType::i32;
  const bool stored =
      y.dtype == a.dtype || y.dtype == accumulate_dtype(a.dtype) || (y.dtype == DType::bf16 && a.dtype == DType::f32);
  FLANMOE_EXPECT(same && stored, "no product of {} and {} into {}", name_of(a.dtype), name_of(b.dtype),
                 name_of(y.dtype));
  return size;
}

/// Boundaries of groups: one more than there are groups, ascending from 0 to `rows`.
inline void expect_groups(std::span<const std::int64_t> first, std::int64_t groups, std::int64_t rows) {
  FLANMOE_EXPECT(std::int64_t(first.size()) == groups + 1, "{} groups need {} boundaries, got {}", groups, groups + 1,
                 first.size());
  FLANMOE_EXPECT(first.front() == 0 && first.back() == rows, "groups cover rows [{}, {}) of {}", first.front(),
                 first.back(), rows);
  for (std::size_t g = 0; g + 1 < first.size(); ++g) {
    FLANMOE_EXPECT(first[g] <= first[g + 1], "group {} begins at row {} and ends at {}", g, first[g], first[g + 1]);
  }
}

/// Boundaries of the leaves of `sums` sums, one sum after the other; returns the leaves of each, a power of two.
inline std::int64_t expect_leaves(std::span<const std::int64_t> first, std::int64_t sums, std::int64_t rows) {
  const std::int64_t parts = std::int64_t(first.size()) - 1;
  const std::int64_t leaves = sums == 0 ? 1 : parts / sums;
  FLANMOE_EXPECT(parts == leaves * sums && (sums == 0 || std::has_single_bit(std::uint64_t(leaves))),
                 "{} boundaries do not cut {} sums into a power of two of leaves each", first.size(), sums);
  expect_groups(first, leaves * sums, rows);
  return leaves;
}

}  // namespace flanmoe
