// The fixed binary tree in which contributions of ranks are added. Private to this folder and its tests.
#pragma once

#include <cstdint>

#include "tensor/dtype.hpp"

namespace flanmoe::detail {

/// out[i] = sum over r of rows[r*stride + i], r = 0 .. ranks-1, for i in [0, count). Neighbours first:
/// ((0+1)+(2+3))+..., an odd one out moves up a level. The left half of a sum is the largest power of two below the
/// number of ranks, so sums over 1, 2 and 4 ranks of the same leaves nest. Added in fp32 for bf16, else in T.
/// `out` may be rows + r*stride for no r.
template <class T>
void tree_sum(T* out, const T* rows, std::int64_t ranks, std::int64_t stride, std::int64_t count);

}  // namespace flanmoe::detail
