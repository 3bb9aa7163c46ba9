// The innermost matrix product of the cpu device: one small tile, computed by one thread in one oneDNN primitive.
//
// c (rows x cols, fp32, dense) = a (rows x depth, dense) . b (depth x cols, packed). Every product is cut into such
// tiles, so a handful of primitives serves all ragged shapes, a row's result does not depend on how many other rows
// there are, and the threads never have to agree on anything but who computes which tile.
#pragma once

#include <cstdint>

#include "tensor/dtype.hpp"

namespace flanmoe::cpu {

/// rows and cols of a tile are multiples of these, up to the largest. Rows beyond the matrix are computed and dropped.
inline constexpr std::int64_t kTileRowStep = 4;
inline constexpr std::int64_t kTileRows = 64;
inline constexpr std::int64_t kTileColStep = 64;
inline constexpr std::int64_t kTileCols = 256;
/// One row of a, and one column of b, takes at most this many bytes; deeper products are sums of several.
inline constexpr std::int64_t kTileDepthBytes = 8192;
/// A packed b takes at most this much, so that it stays in a core's second-level cache.
inline constexpr std::int64_t kPackedBytes = std::int64_t{1280} << 10;

/// Depth of a tile is a multiple of this: one AMX tile holds 32 bf16 (16 fp32) of a row.
constexpr std::int64_t depth_step(DType dtype) { return dtype == DType::bf16 ? 32 : 16; }
constexpr std::int64_t max_depth(DType dtype) { return kTileDepthBytes / std::int64_t(size_of(dtype)); }
constexpr std::int64_t round_up(std::int64_t n, std::int64_t step) { return (n + step - 1) / step * step; }
/// Widest tile whose packed b has room in kPackedBytes.
constexpr std::int64_t tile_cols_for(DType dtype, std::int64_t depth) {
  const std::int64_t fit = kPackedBytes / (depth * std::int64_t(size_of(dtype))) / kTileColStep * kTileColStep;
  return fit < kTileCols ? fit : kTileCols;
}

/// The element type in which tiles of f32 or bf16 operands are multiplied: bf16 becomes f32 on processors for which
/// oneDNN has no bf16 product. The exact products of bf16 numbers are the same in both.
DType tile_dtype(DType operands);

/// How b is packed: blocks of `block_cols` columns one after the other; inside a block, rows of `interleave` successive
/// k for each column: element (k, n) of a block is at ((k / interleave) * block_cols + n) * interleave + k %
/// interleave.
struct PackedLayout {
  std::int64_t block_cols = 0;
  std::int64_t interleave = 1;
};

class TileKernel {
 public:
  /// The cached kernel of this shape, made on first use (about a millisecond; do that outside of parallel regions,
  /// where an exception can be caught). dtype: f32 or bf16, the type of a and b.
  static const TileKernel& get(DType dtype, std::int64_t rows, std::int64_t depth, std::int64_t cols);

  /// Whether oneDNN multiplies this type by b in blocks of kTileColStep columns on this processor.
  static bool reads_blocks(DType dtype);
  /// How all kernels read b where they do.
  static constexpr PackedLayout blocks_of(DType dtype) { return {kTileColStep, dtype == DType::bf16 ? 2 : 1}; }

  /// Callable by many threads at once. All pointers 64-byte aligned: AMX is several times slower otherwise.
  void operator()(float* c, const void* a, const void* packed_b) const;

  const PackedLayout& layout() const { return layout_; }

 private:
  struct Primitive;
  TileKernel() = default;
  static const TileKernel& find_or_make(DType dtype, std::int64_t rows, std::int64_t depth, std::int64_t cols);

  const Primitive* primitive_ = nullptr;
  PackedLayout layout_;
  std::size_t index_ = 0;
};

}  // namespace flanmoe::cpu
