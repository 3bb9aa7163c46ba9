// Sums over the leaves of a microbatch: equal parts of its rows whose contributions to a gradient, a loss or a count
// are summed by themselves and then added along one binary tree, so that the bits do not depend on how many leaves are
// computed together.
#pragma once

#include <array>
#include <bit>
#include <cstdint>
#include <span>

#include "kernels/scratch.hpp"
#include "moe/layer_context.hpp"

namespace flanmoe {

/// Runs f on each of a power of two of leaves and adds up what it writes: neighbours first, then pairs of neighbours,
/// as in a binary counter. f(leaf, sum) adds to `sum`, which is 0. `total` gets the sum of all; `waiting` holds
/// log2(leaves) tensors of its shape.
template <class F>
void add_along_tree(const LayerContext& c, const Tensor& total, const Tensor& waiting, std::int64_t leaves,
                    const F& f) {
  const auto buffer = [&](std::int64_t level) { return level == 0 ? total : waiting.matrix(level - 1); };
  std::int64_t level = 0;
  for (std::int64_t leaf = 0; leaf < leaves; ++leaf) {
    f(leaf, buffer(level));
    for (std::int64_t n = leaf + 1; n % 2 == 0; n /= 2) {
      c.k.elementwise.add(c.context, buffer(level - 1), buffer(level));
      --level;
    }
    ++level;
  }
}

/// Sums of leaves that wait in the tree for their neighbours.
inline std::int64_t waiting_sums(std::int64_t leaves) { return std::bit_width(std::uint64_t(leaves)) - 1; }

/// The same for a small gradient: f adds to a sum that was zeroed for it, and memory is taken from scratch.
template <class F>
void add_small_gradient(const LayerContext& c, const Tensor& total, std::int64_t leaves, const F& f) {
  if (leaves == 1) {
    f(0, total);
    return;
  }
  ScratchScope scratch(c.context);
  Tensor waiting = total;
  waiting.batch = waiting_sums(leaves);
  waiting.data = scratch.take_bytes(waiting.bytes());
  add_along_tree(c, total, waiting, leaves, [&](std::int64_t leaf, const Tensor& sum) {
    c.k.elementwise.zero(c.context, sum);
    f(leaf, sum);
  });
}

/// Bytes of scratch that add_small_gradient takes for a gradient of so many bytes.
inline std::size_t small_gradient_bytes(std::size_t bytes, std::int64_t leaves) {
  return std::size_t(waiting_sums(leaves)) * bytes + 64;
}

/// Numbers of leaves on the host, added in the same tree.
template <std::size_t K>
class LeafNumbers {
 public:
  using Numbers = std::array<double, K>;
  void add(Numbers leaf) {
    for (std::uint64_t n = ++leaves_; n % 2 == 0; n /= 2) {
      const Numbers& left = waiting_[--count_];
      for (std::size_t i = 0; i < K; ++i) leaf[i] = left[i] + leaf[i];
    }
    waiting_[count_++] = leaf;
  }
  /// After a power of two of leaves.
  const Numbers& sum() const { return waiting_[0]; }

 private:
  std::array<Numbers, 64> waiting_{};
  std::size_t count_ = 0;
  std::uint64_t leaves_ = 0;
};

}  // namespace flanmoe
