// Sums over leaves along one binary tree, in the type that results are kept in.
#pragma once

#include <cstdint>

namespace flanmoe::reference {

/// leaf(first) + ... + leaf(first + count - 1), neighbours first; count is a power of two. Sums are rounded to A.
template <class A, class F>
A tree_sum(std::int64_t first, std::int64_t count, const F& leaf) {
  if (count == 1) return leaf(first);
  return tree_sum<A>(first, count / 2, leaf) + tree_sum<A>(first + count / 2, count / 2, leaf);
}

}  // namespace flanmoe::reference
