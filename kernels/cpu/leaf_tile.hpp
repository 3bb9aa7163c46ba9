// A tile of the sum of the products of several leaves, summed in registers, for gemm_leaves.cpp.
//
// oneDNN writes the tile of each leaf to memory, from where the tiles are summed: for a leaf of few rows that takes
// longer than to multiply it. Here the tile of a leaf stays in registers until it meets those of its neighbours.
#pragma once

#include <algorithm>
#include <span>

#include "kernels/cpu/tile_kernel.hpp"

namespace flanmoe::cpu {

/// Packed operands of one leaf, as TileKernel reads them.
struct PackedLeaf {
  const char* a = nullptr;       // rows
  std::int64_t row_bytes = 0;    // from one row of a to the next
  const char* b = nullptr;       // blocks of kTileColStep columns
  std::int64_t block_bytes = 0;  // from one block of b to the next
  std::int64_t words = 0;        // of depth: one fp32, or two bf16; 0: a leaf without rows
};

/// Words of depth that a tile has to multiply: those of `depth` and, where the depth is padded, one of the zeros behind
/// them, which turns a -0 into 0 as all of them would.
constexpr std::int64_t words_of(DType dtype, std::int64_t depth, std::int64_t padded_depth) {
  const std::int64_t per_word = dtype == DType::bf16 ? 2 : 1;
  return std::min((depth + per_word - 1) / per_word + 1, padded_depth / per_word);
}

/// Padded depth of the deepest leaf that leaf_tile() multiplies: oneDNN sums a deeper one in several parts.
inline constexpr std::int64_t kLeafTileDepth = 512;

/// Whether leaf_tile() multiplies this type on this processor and has the bits of TileKernel, found out by comparing
/// them in the first call; make that outside of parallel regions.
bool has_leaf_tiles(DType dtype);

inline constexpr std::int64_t kMostLeavesOfTile = 8;

/// c (rows x blocks * kTileColStep, stride ldc) = the sum over a power of two of leaves, at most kMostLeavesOfTile, of
/// alpha a . b, along one binary tree. Written a few rows at a time from the first column to the last, so that few
/// pages are in use. Callable by many threads at once.
void leaf_tile(DType dtype, float* c, std::int64_t ldc, std::int64_t rows, std::int64_t blocks,
               std::span<const PackedLeaf> leaves, float alpha);

}  // namespace flanmoe::cpu
