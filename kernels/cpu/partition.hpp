// How loops are cut over threads. The cut is a function of the problem's size only, so results never depend on the
// number of threads; the threads merely share out the pieces.
#pragma once

#include <algorithm>
#include <array>
#include <cstdint>

namespace flanmoe::cpu {

/// Below this many elements a loop stays on one thread: starting a team costs about as much as the work.
inline constexpr std::int64_t kParallelElements = 16384;

/// Calls body(block, begin, end) for [0, n) in blocks of `block` items of `elements` elements each.
template <class F>
void for_blocks(std::int64_t n, std::int64_t block, std::int64_t elements, F&& body) {
  const std::int64_t blocks = (n + block - 1) / block;
#pragma omp parallel for schedule(static) if (blocks > 1 && n * elements >= kParallelElements)
  for (std::int64_t b = 0; b < blocks; ++b) body(b, b * block, std::min(n, (b + 1) * block));
}

/// Calls body(row, first, count): pieces of rows that together are all of rows x cols. A contiguous matrix is one row.
template <class F>
void for_pieces(std::int64_t rows, std::int64_t cols, bool contiguous, F&& body) {
  constexpr std::int64_t piece = 8192;
  if (rows == 0 || cols == 0) return;
  if (contiguous) {
    cols *= rows;
    rows = 1;
  }
  const std::int64_t pieces = (cols + piece - 1) / piece;
#pragma omp parallel for schedule(static) if (rows * cols >= kParallelElements)
  for (std::int64_t i = 0; i < rows * pieces; ++i) {
    const std::int64_t first = i % pieces * piece;
    body(i / pieces, first, std::min(piece, cols - first));
  }
}

/// Rows per block such that there are at most `blocks` blocks and, before that, at least `smallest` rows in each.
inline std::int64_t block_rows(std::int64_t rows, std::int64_t blocks, std::int64_t smallest) {
  return std::max(smallest, (rows + blocks - 1) / blocks);
}

/// The sum of leaf(b) for b in [0, leaves) along one binary tree whose shape is that of the next power of two: leaves
/// past the end count as zero. leaf returns an array of K sums.
template <std::size_t K, class F>
std::array<double, K> tree_sum(std::int64_t leaves, const F& leaf, std::int64_t first, std::int64_t count) {
  if (first >= leaves) return {};
  if (count == 1) return leaf(first);
  auto sum = tree_sum<K>(leaves, leaf, first, count / 2);
  const auto right = tree_sum<K>(leaves, leaf, first + count / 2, count / 2);
  for (std::size_t i = 0; i < K; ++i) sum[i] += right[i];
  return sum;
}

/// The same, shared out over threads by subtrees.
template <std::size_t K, class F>
std::array<double, K> parallel_tree_sum(std::int64_t leaves, std::int64_t elements, const F& leaf) {
  constexpr std::int64_t most = 256;  // subtrees
  std::int64_t span = 1;              // leaves of one subtree
  while (span * most < leaves) span *= 2;
  std::array<std::array<double, K>, most> partial{};
  const std::int64_t subtrees = (leaves + span - 1) / span;
#pragma omp parallel for schedule(static) if (subtrees > 1 && leaves * elements >= kParallelElements)
  for (std::int64_t s = 0; s < subtrees; ++s) partial[std::size_t(s)] = tree_sum<K>(leaves, leaf, s * span, span);
  std::int64_t count = 1;
  while (count < subtrees) count *= 2;
  return tree_sum<K>(
      subtrees, [&](std::int64_t s) { return partial[std::size_t(s)]; }, 0, count);
}

}  // namespace flanmoe::cpu
