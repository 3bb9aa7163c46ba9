// Matrix products out of tiles: y = alpha op(a) . op(b) + (accumulate ? y : 0).
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

#include "kernels/context.hpp"
#include "kernels/matmul_checks.hpp"
#include "tensor/tensor.hpp"

namespace flanmoe::cpu {

struct Product {
  Tensor y, a, b;
  bool transpose_a = false, transpose_b = false;
  float alpha = 1.0F;
  bool accumulate = false;  // needs an fp32 y
  ProductSize size;
  /// Boundaries of the leaves of the depth, ascending; from one to the next as far as in a and b. A power of two of
  /// leaves: the product of each is computed by itself, as it would be alone, and their sum goes along one binary tree.
  /// Empty: the depth is one leaf. Needs an fp32 y.
  std::span<const std::int64_t> leaves = {};
  /// All of b as pack_whole_b() leaves it, or null: b is packed panel by panel. The product is one slice then.
  const char* packed_b = nullptr;
};

/// One product, by all threads.
void multiply(KernelContext& context, const Product& product);

/// Whether the product is a sum of several slices of depth, which needs an fp32 temporary because y is bf16. Only
/// multiply() takes such products.
bool needs_temporary(const Product& product);

/// Product number i of a list, as a borrowed function object: a step must not allocate, which std::function may.
class ProductList {
 public:
  // Callers pass lambdas, which live until the call returns.
  template <class F>
  ProductList(const F& f)
      : object_(&f), call_([](const void* object, std::int64_t i) { return (*static_cast<const F*>(object))(i); }) {}
  Product operator()(std::int64_t i) const { return call_(object_, i); }

 private:
  const void* object_;
  Product (*call_)(const void*, std::int64_t);
};

/// Products one after the other, each computed by all threads: both operands are packed once into shared memory.
/// For few products.
void multiply_in_turn(KernelContext& context, std::int64_t count, const ProductList& product);

/// Independent products of which every thread takes its own pieces and packs b for itself. For many products whose b
/// is used for few rows.
void multiply_side_by_side(KernelContext& context, std::int64_t count, const ProductList& product);

/// Whether a whole b of so many rows and columns can be packed once for many products: in the processor's own blocks,
/// and not deeper than a tile.
bool packs_whole(DType dtype, std::int64_t depth);

/// Elements of a b that is packed as a whole: blocks of kTileColStep columns one after the other, for any panel.
std::int64_t whole_b_size(DType dtype, std::int64_t depth, std::int64_t cols);

/// Packs all columns of op(b) for each matrix of b, by all threads. packed: batch of rows of whole_b_size() elements.
void pack_whole_b(KernelContext& context, const Tensor& packed, const Tensor& b, bool transpose_b);

/// Bytes of scratch that any product takes at most; grows with the number of threads only.
std::size_t gemm_scratch_bytes();

}  // namespace flanmoe::cpu
