// What the products of gemm are cut into: slices of the depth, panels of y, and the memory of a thread.
#pragma once

#include <omp.h>

#include <algorithm>

#include "kernels/cpu/gemm.hpp"
#include "kernels/cpu/packing.hpp"
#include "kernels/cpu/tile_kernel.hpp"
#include "kernels/scratch.hpp"

namespace flanmoe::cpu {

inline constexpr std::int64_t kSharedBytes = std::int64_t{8} << 20;  // for each of a and b, packed for all threads
inline constexpr std::int64_t kTemporaryBytes = std::int64_t{8} << 20;
inline constexpr std::int64_t kStripsPacked = 4;
inline constexpr std::int64_t kTaskRows = 512;  // most rows that one task multiplies by one packed b
/// Rows of a tile that is written to y itself: each of them lies on other pages, and more pages than the processor has
/// addresses at hand make the tile slow where memory comes in small pages.
inline constexpr std::int64_t kRowsInPlace = 16;

inline std::int64_t ceil_div(std::int64_t n, std::int64_t d) { return (n + d - 1) / d; }

/// A depth between `depth` and the largest for which a kernel is kept. Weight gradients have a new depth (a number of
/// tokens) in every step, so few depths are kept: the coarser the deeper, at most an eighth of padding from 64 up.
inline std::int64_t kernel_depth(DType dtype, std::int64_t depth, bool ragged) {
  const std::int64_t step = depth_step(dtype);
  if (!ragged) return round_up(depth, step);
  std::int64_t coarse = 8;
  while (coarse < 256 && depth > 16 * coarse) coarse *= 2;
  return round_up(depth, coarse);
}

/// Memory of one thread: the tiles of a few rows side by side, a few rows of a, a packed b.
struct Workspace {
  float* c;
  char* a;
  char* b;
};
inline constexpr std::int64_t kTileBytes = std::int64_t{512} << 10;
inline constexpr std::int64_t kRowsBytes = kTileRows * kTileDepthBytes;
inline constexpr std::int64_t kThreadBytes = kTileBytes + kRowsBytes + kPackedBytes;

/// The workspaces of all threads, for the time of one call.
class Workspaces {
 public:
  explicit Workspaces(ScratchScope& scratch) : base_(take_bytes(scratch, omp_get_max_threads() * kThreadBytes)) {}

  static char* take_bytes(ScratchScope& scratch, std::int64_t bytes) {
    return reinterpret_cast<char*>(scratch.take<float>(bytes / std::int64_t(sizeof(float))));
  }
  Workspace mine() const {
    char* base = base_ + omp_get_thread_num() * kThreadBytes;
    return {reinterpret_cast<float*>(base), base + kTileBytes, base + kTileBytes + kRowsBytes};
  }

 private:
  char* base_;
};

/// One piece of depth of a product, and the sizes of its tiles.
struct Slice {
  const Product* product;
  DType dtype;
  std::int64_t k, depth, padded_depth;  // depth range [k, k + depth)
  std::int64_t panel_cols;              // of a tile: its packed b stays in the second-level cache
  bool first;                           // the first slice writes y unless the product accumulates; later ones add

  std::int64_t element() const { return std::int64_t(size_of(dtype)); }
  std::int64_t row_bytes() const { return padded_depth * element(); }                      // of a, packed
  std::int64_t packed_depth() const { return round_up(padded_depth, depth_step(dtype)); }  // of b: whole blocks
  std::int64_t column_bytes() const { return packed_depth() * element(); }                 // of b, packed
  std::int64_t cols_at(std::int64_t n) const { return std::min(panel_cols, product->size.cols - n); }
  std::int64_t padded_cols_at(std::int64_t n) const { return round_up(cols_at(n), kTileColStep); }
  /// Only the kernels for blocked layouts are known to give a row the same bits in a tile of any height.
  std::int64_t padded_rows(std::int64_t rows) const {
    return round_up(rows, TileKernel::reads_blocks(dtype) ? kTileRowStep : kTileRows);
  }
  const TileKernel& kernel(std::int64_t rows, std::int64_t n) const {
    return TileKernel::get(dtype, padded_rows(rows), padded_depth, padded_cols_at(n));
  }
  PackedLayout layout(std::int64_t n) const {
    if (TileKernel::reads_blocks(dtype)) return TileKernel::blocks_of(dtype);
    return kernel(std::min(kTileRows, product->size.rows), n).layout();
  }
  Window window_a(std::int64_t m, std::int64_t rows) const {
    return {&product->a, product->transpose_a, m, rows, k, depth};
  }
  Window window_b(std::int64_t n, std::int64_t cols) const {
    return {&product->b, product->transpose_b, k, depth, n, cols};
  }
  /// Rows of a can be read where they are.
  bool a_is_ready() const {
    const Tensor& a = product->a;
    return !product->transpose_a && a.dtype == dtype && a.stride == padded_depth &&
           reinterpret_cast<std::uintptr_t>(a.data) % 64 == 0 && padded_depth * element() % 64 == 0;
  }
  /// A tile of so many rows, from column n, lies in y as in a buffer of its own, and is all that y is to hold.
  bool tile_is_y(std::int64_t rows, std::int64_t n) const {
    const Product& p = *product;
    const bool only = p.y.dtype == DType::f32 && !p.accumulate && p.alpha == 1.0F && depth == p.size.inner;
    return only && TileKernel::reads_blocks(dtype) && n == 0 && p.y.stride == padded_cols_at(n) &&
           p.size.cols == p.y.stride && rows == padded_rows(rows) &&
           reinterpret_cast<std::uintptr_t>(p.y.data) % 64 == 0;
  }
};

/// A range of the depth of a product.
struct Depth {
  std::int64_t begin, count;
};
inline Depth whole_depth(const Product& p) { return {0, p.size.inner}; }

/// One slice where a tile is deep enough for the product. Otherwise sums of slices are kept in y if it is fp32: then
/// slices are shallower than they must be, since panels are the wider for it. Else they need a temporary, and are deep.
inline std::int64_t slice_count(const Product& p, const Depth& range) {
  const std::int64_t deepest = max_depth(tile_dtype(p.a.dtype));
  if (range.count <= deepest) return range.count > 0 ? 1 : 0;
  return ceil_div(range.count, p.y.dtype == DType::f32 ? deepest / 2 : deepest);
}

/// Panels of about equal width, as wide as the cache allows for a packed b of so many rows and `tiles` tiles at a time:
/// rows of b are read, and rows of y written, in runs of this length.
inline std::int64_t panel_cols_for(const Product& p, std::int64_t depth, std::int64_t tiles) {
  const std::int64_t element = std::int64_t(size_of(tile_dtype(p.a.dtype)));
  const std::int64_t fit =
      std::min(kPackedBytes / (depth * element), kTileBytes / (tiles * kTileRows * std::int64_t(sizeof(float))));
  const std::int64_t panels = ceil_div(p.size.cols, fit / kTileColStep * kTileColStep);
  return round_up(ceil_div(p.size.cols, panels), kTileColStep);
}

/// Slice `index` of a range of the depth; panel_cols is left to the caller.
inline Slice slice_in(const Product& p, const Depth& range, std::int64_t index) {
  // Slices of equal depth, so that none is a small remainder.
  const DType dtype = tile_dtype(p.a.dtype);
  const std::int64_t share = round_up(ceil_div(range.count, slice_count(p, range)), depth_step(dtype));
  const std::int64_t k = std::min(index * share, range.count);
  const std::int64_t depth = std::min(share, range.count - k);
  return {&p, dtype, range.begin + k, depth, kernel_depth(dtype, depth, p.transpose_a), 0, index == 0};
}

inline Slice slice_of(const Product& p, std::int64_t index) {
  const Slice widest = slice_in(p, whole_depth(p), 0);
  Slice slice = slice_in(p, whole_depth(p), index);
  slice.panel_cols = panel_cols_for(p, widest.packed_depth(), 1);
  return slice;
}

/// A rectangle of y.
struct Panel {
  std::int64_t m0, m1, n0, n1;
};

/// Makes the kernels of a slice now: a failure inside a parallel region could not be reported.
inline void make_kernels(const Slice& slice) {
  const ProductSize& size = slice.product->size;
  const std::int64_t last_n = (size.cols - 1) / slice.panel_cols * slice.panel_cols;
  for (const std::int64_t n : {std::int64_t{0}, last_n}) {
    slice.kernel(std::min(kTileRows, size.rows), n);
    if (size.rows % kTileRows != 0) slice.kernel(size.rows % kTileRows, n);
  }
}

/// Packs b and, if asked to, a of all of `area` for all threads of the enclosing parallel region. Ends without a
/// barrier.
inline void pack_area(const Slice& slice, const Panel& area, char* shared_a, char* shared_b) {
  const std::int64_t row_bytes = slice.row_bytes();
  const std::int64_t group = kTileRows * kStripsPacked;
  // Blocks of columns lie one after the other in packed memory, so a panel may be packed in pieces.
  const bool in_blocks = slice.layout(area.n0).block_cols == kTileColStep;
  const std::int64_t piece = in_blocks ? kTileCols : slice.panel_cols;
#pragma omp for schedule(dynamic) nowait
  for (std::int64_t n = area.n0; n < area.n1; n += piece) {
    const std::int64_t cols = std::min(piece, area.n1 - n);
    pack_b(shared_b + (n - area.n0) * slice.column_bytes(), slice.dtype, slice.window_b(n, cols), slice.packed_depth(),
           round_up(cols, kTileColStep), slice.layout(in_blocks ? area.n0 : n));
  }
  if (shared_a == nullptr) return;
#pragma omp for schedule(dynamic) nowait
  for (std::int64_t m = area.m0; m < area.m1; m += group) {
    const std::int64_t rows = std::min(group, area.m1 - m);
    pack_a(shared_a + (m - area.m0) * row_bytes, slice.dtype, slice.window_a(m, rows), slice.padded_rows(rows),
           slice.padded_depth);
  }
}

}  // namespace flanmoe::cpu
