// Products whose depth is cut into leaves (Product::leaves), for gemm.cpp.
#pragma once

#include "kernels/cpu/gemm_parts.hpp"

namespace flanmoe::cpu {

inline bool in_leaves(const Product& product) { return product.leaves.size() > 2; }

/// Makes the kernels that multiply_leaves() will ask for.
void make_leaf_kernels(const Product& product);

/// The whole product, which has leaves, by all threads of the enclosing parallel region: the product of each leaf is
/// computed by itself, and their sum goes along one binary tree, whatever is computed together. Operands are packed
/// into shared_a and shared_b (kSharedBytes); sums that do not fit into cache wait in `waiting` (kTemporaryBytes).
void multiply_leaves(const Product& product, const Workspace& mine, char* shared_a, char* shared_b, float* waiting);

}  // namespace flanmoe::cpu
