#include "kernels/cpu/gemm.hpp"

#include <omp.h>

#include <algorithm>

#include "kernels/cpu/packing.hpp"
#include "kernels/cpu/tile_kernel.hpp"
#include "kernels/scratch.hpp"

namespace flanmoe::cpu {
namespace {

constexpr std::int64_t kSharedBytes = std::int64_t{8} << 20;  // for each of a and b, packed for all threads
constexpr std::int64_t kTemporaryBytes = std::int64_t{8} << 20;
constexpr std::int64_t kStripsPacked = 4;
constexpr std::int64_t kTaskRows = 512;  // most rows that one task multiplies by one packed b
/// Rows of a tile that is written to y itself: each of them lies on other pages, and more pages than the processor has
/// addresses at hand make the tile slow where memory comes in small pages.
constexpr std::int64_t kRowsInPlace = 16;

std::int64_t ceil_div(std::int64_t n, std::int64_t d) { return (n + d - 1) / d; }

/// A depth between `depth` and the largest for which a kernel is kept. Weight gradients have a new depth (a number of
/// tokens) in every step, so few depths are kept: the coarser the deeper, at most an eighth of padding from 64 up.
std::int64_t kernel_depth(DType dtype, std::int64_t depth, bool ragged) {
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
constexpr std::int64_t kTileBytes = std::int64_t{512} << 10;
constexpr std::int64_t kRowsBytes = kTileRows * kTileDepthBytes;
constexpr std::int64_t kThreadBytes = kTileBytes + kRowsBytes + kPackedBytes;

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
  const PackedLayout& layout(std::int64_t n) const {
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

/// One slice where a tile is deep enough for the product. Otherwise sums of slices are kept in y if it is fp32: then
/// slices are shallower than they must be, since panels are the wider for it. Else they need a temporary, and are deep.
std::int64_t slice_count(const Product& p) {
  const std::int64_t deepest = max_depth(tile_dtype(p.a.dtype));
  if (p.size.inner <= deepest) return p.size.inner > 0 ? 1 : 0;
  return ceil_div(p.size.inner, p.y.dtype == DType::f32 ? deepest / 2 : deepest);
}

Slice slice_of(const Product& p, std::int64_t index) {
  // Slices of equal depth, so that none is a small remainder.
  const DType dtype = tile_dtype(p.a.dtype);
  const std::int64_t share = round_up(ceil_div(p.size.inner, slice_count(p)), depth_step(dtype));
  const std::int64_t k = std::min(index * share, p.size.inner);
  const std::int64_t depth = std::min(share, p.size.inner - k);
  const std::int64_t widest = round_up(kernel_depth(dtype, share, p.transpose_a), depth_step(dtype));
  // Panels of about equal width, as wide as the cache allows: rows of b are read, and rows of y written, in runs of
  // this length.
  const std::int64_t fit = std::min(kPackedBytes / (widest * std::int64_t(size_of(dtype))),
                                    kTileBytes / (kTileRows * std::int64_t(sizeof(float))));
  const std::int64_t panels = ceil_div(p.size.cols, fit / kTileColStep * kTileColStep);
  const std::int64_t panel_cols = round_up(ceil_div(p.size.cols, panels), kTileColStep);
  return {&p, dtype, k, depth, kernel_depth(dtype, depth, p.transpose_a), panel_cols, index == 0};
}

/// Columns [n, n + cols) of row i of y from a row of a tile.
void write_row(const Slice& slice, const float* c, std::int64_t i, std::int64_t n, std::int64_t cols) {
  const Product& p = *slice.product;
  const float alpha = p.alpha;
  if (p.y.dtype == DType::bf16) {
    bf16* y = p.y.row<bf16>(i) + n;
    for (std::int64_t j = 0; j < cols; ++j) y[j] = bf16(alpha * c[j]);
  } else if (p.accumulate || !slice.first) {
    float* y = p.y.row<float>(i) + n;
    for (std::int64_t j = 0; j < cols; ++j) y[j] += alpha * c[j];
  } else {
    float* y = p.y.row<float>(i) + n;
    for (std::int64_t j = 0; j < cols; ++j) y[j] = alpha * c[j];
  }
}

/// A rectangle of y.
struct Panel {
  std::int64_t m0, m1, n0, n1;
};

/// A panel of at most panel_cols columns. `packed_a`: its rows, packed, or null to read a itself.
void multiply_panel(const Slice& slice, const Panel& panel, const Workspace& mine, const char* packed_a,
                    const char* packed_b) {
  const bool ready = slice.a_is_ready();
  const std::int64_t row_bytes = slice.row_bytes();
  const std::int64_t ld = slice.padded_cols_at(panel.n0);
  for (std::int64_t m = panel.m0; m < panel.m1; m += kTileRows) {
    const std::int64_t rows = std::min(kTileRows, panel.m1 - m);
    const std::int64_t padded_rows = slice.padded_rows(rows);
    const void* a = packed_a;
    if (packed_a != nullptr) {
      packed_a += kTileRows * row_bytes;
    } else if (ready && rows == slice.padded_rows(rows)) {
      a = static_cast<const char*>(slice.product->a.data) + m * row_bytes;
    } else {
      pack_a(mine.a, slice.dtype, slice.window_a(m, rows), padded_rows, slice.padded_depth);
      a = mine.a;
    }
    if (slice.tile_is_y(rows, panel.n0)) {
      for (std::int64_t r = 0; r < rows; r += kRowsInPlace) {
        slice.kernel(std::min(kRowsInPlace, rows - r), panel.n0)(slice.product->y.row<float>(m + r),
                                                                 static_cast<const char*>(a) + r * row_bytes, packed_b);
      }
      continue;
    }
    slice.kernel(rows, panel.n0)(mine.c, a, packed_b);
    for (std::int64_t i = 0; i < rows; ++i) write_row(slice, mine.c + i * ld, m + i, panel.n0, panel.n1 - panel.n0);
  }
}

/// Makes the kernels of a slice now: a failure inside a parallel region could not be reported.
void make_kernels(const Slice& slice) {
  const ProductSize& size = slice.product->size;
  const std::int64_t last_n = (size.cols - 1) / slice.panel_cols * slice.panel_cols;
  for (const std::int64_t n : {std::int64_t{0}, last_n}) {
    slice.kernel(std::min(kTileRows, size.rows), n);
    if (size.rows % kTileRows != 0) slice.kernel(size.rows % kTileRows, n);
  }
}

void fill_zero(const Product& p) {
  if (p.accumulate) return;
#pragma omp parallel for
  for (std::int64_t i = 0; i < p.y.rows; ++i) {
    std::fill_n(static_cast<char*>(p.y.data) + i * p.y.stride * std::int64_t(size_of(p.y.dtype)),
                p.y.cols * std::int64_t(size_of(p.y.dtype)), char{0});
  }
}

/// Checks what the tiles rely on; true when there is something to multiply.
bool prepare(const Product& p) {
  const bool summed_in_y = slice_count(p) > 1 || p.accumulate;
  FLANMOE_EXPECT(!summed_in_y || p.y.dtype == DType::f32, "a sum of products is kept in f32, not {}",
                 name_of(p.y.dtype));
  if (p.size.rows == 0 || p.size.cols == 0) return false;
  if (p.size.inner == 0) {
    fill_zero(p);
    return false;
  }
  for (std::int64_t s = 0; s < slice_count(p); ++s) make_kernels(slice_of(p, s));
  return true;
}

/// All of `area`, by all threads of the enclosing parallel region, from shared packed operands. Ends with a barrier.
void multiply_area(const Slice& slice, const Panel& area, const Workspace& mine, char* shared_a, char* shared_b) {
  const std::int64_t row_bytes = slice.row_bytes();
  const bool pack = !slice.a_is_ready() || area.m1 % kTileRows != slice.padded_rows(area.m1 % kTileRows);
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
  if (pack) {
#pragma omp for schedule(dynamic) nowait
    for (std::int64_t m = area.m0; m < area.m1; m += group) {
      const std::int64_t rows = std::min(group, area.m1 - m);
      pack_a(shared_a + (m - area.m0) * row_bytes, slice.dtype, slice.window_a(m, rows), slice.padded_rows(rows),
             slice.padded_depth);
    }
  }
#pragma omp barrier
#pragma omp for collapse(2) schedule(dynamic)
  for (std::int64_t n = area.n0; n < area.n1; n += slice.panel_cols) {
    for (std::int64_t m = area.m0; m < area.m1; m += kTileRows) {
      multiply_panel(slice, {m, std::min(m + kTileRows, area.m1), n, std::min(n + slice.panel_cols, area.n1)}, mine,
                     pack ? shared_a + (m - area.m0) * row_bytes : nullptr,
                     shared_b + (n - area.n0) * slice.column_bytes());
    }
  }
}

void multiply_slice(const Slice& slice, const Workspace& mine, char* shared_a, char* shared_b) {
  const std::int64_t row_bytes = slice.row_bytes();
  const std::int64_t most_rows = kSharedBytes / row_bytes / kTileRows * kTileRows;
  const std::int64_t most_cols = kSharedBytes / slice.column_bytes() / slice.panel_cols * slice.panel_cols;
  const ProductSize& size = slice.product->size;
  for (std::int64_t n = 0; n < size.cols; n += most_cols) {
    for (std::int64_t m = 0; m < size.rows; m += most_rows) {
      multiply_area(slice, {m, std::min(m + most_rows, size.rows), n, std::min(n + most_cols, size.cols)}, mine,
                    shared_a, shared_b);
    }
  }
}

}  // namespace

bool needs_temporary(const Product& p) { return p.y.dtype == DType::bf16 && slice_count(p) > 1; }

void multiply(KernelContext& context, const Product& p) {
  if (!needs_temporary(p)) {
    multiply_in_turn(context, 1, [&](std::int64_t) { return p; });
    return;
  }
  // Sum in fp32, as many rows at a time as the temporary holds, and round once at the end.
  ScratchScope scratch(context);
  const std::int64_t most = kTemporaryBytes / (4 * std::max<std::int64_t>(1, p.size.cols));
  const std::int64_t chunk = std::min(std::max<std::int64_t>(1, most), p.size.rows);
  const Tensor sum = make_tensor(scratch.take<float>(chunk * p.size.cols), chunk, p.size.cols);
  for (std::int64_t m = 0; m < p.size.rows; m += chunk) {
    const std::int64_t rows = std::min(chunk, p.size.rows - m);
    Product part = p;
    part.y = sum.slice_rows(0, rows);
    part.a = p.transpose_a ? p.a.slice_cols(m, rows) : p.a.slice_rows(m, rows);
    part.size.rows = rows;
    multiply_in_turn(context, 1, [&](std::int64_t) { return part; });
#pragma omp parallel for
    for (std::int64_t i = 0; i < rows; ++i) {
      const float* from = sum.row<float>(i);
      bf16* to = p.y.row<bf16>(m + i);
      for (std::int64_t j = 0; j < p.size.cols; ++j) to[j] = bf16(from[j]);
    }
  }
}

void multiply_in_turn(KernelContext& context, std::int64_t count, const ProductList& product) {
  ScratchScope scratch(context);
  const Workspaces workspaces(scratch);
  char* shared_a = Workspaces::take_bytes(scratch, kSharedBytes);
  char* shared_b = Workspaces::take_bytes(scratch, kSharedBytes);
  for (std::int64_t g = 0; g < count; ++g) prepare(product(g));
#pragma omp parallel
  {
    const Workspace mine = workspaces.mine();
    for (std::int64_t g = 0; g < count; ++g) {
      const Product p = product(g);
      if (p.size.rows == 0 || p.size.cols == 0) continue;
      for (std::int64_t s = 0; s < slice_count(p); ++s) multiply_slice(slice_of(p, s), mine, shared_a, shared_b);
    }
  }
}

void multiply_side_by_side(KernelContext& context, std::int64_t count, const ProductList& product) {
  ScratchScope scratch(context);
  const Workspaces workspaces(scratch);
  for (std::int64_t g = 0; g < count; ++g) prepare(product(g));
#pragma omp parallel
  {
    const Workspace mine = workspaces.mine();
    for (std::int64_t g = 0; g < count; ++g) {
      const Product p = product(g);
      if (p.size.rows == 0 || p.size.cols == 0 || p.size.inner == 0) continue;
      // Tasks split rows and columns, never the depth: the slices of one piece of y follow each other in one thread.
      const std::int64_t panel_cols = slice_of(p, 0).panel_cols;
#pragma omp for collapse(2) schedule(dynamic) nowait
      for (std::int64_t n = 0; n < p.size.cols; n += panel_cols) {
        for (std::int64_t m = 0; m < p.size.rows; m += kTaskRows) {
          const Panel panel{m, std::min(m + kTaskRows, p.size.rows), n, std::min(n + panel_cols, p.size.cols)};
          for (std::int64_t s = 0; s < slice_count(p); ++s) {
            const Slice slice = slice_of(p, s);
            pack_b(mine.b, slice.dtype, slice.window_b(n, slice.cols_at(n)), slice.packed_depth(),
                   slice.padded_cols_at(n), slice.layout(n));
            multiply_panel(slice, panel, mine, nullptr, mine.b);
          }
        }
      }
    }
  }
}

std::size_t gemm_scratch_bytes() {
  return std::size_t(2 * kSharedBytes + kTemporaryBytes + omp_get_max_threads() * kThreadBytes);
}

}  // namespace flanmoe::cpu
