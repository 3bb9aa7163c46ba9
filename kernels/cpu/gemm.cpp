#include "kernels/cpu/gemm.hpp"

#include <cstring>

#include "kernels/cpu/gemm_leaves.hpp"
#include "kernels/cpu/gemm_parts.hpp"

namespace flanmoe::cpu {
namespace {

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
  const bool summed_in_y = slice_count(p, whole_depth(p)) > 1 || p.accumulate || in_leaves(p);
  FLANMOE_EXPECT(!summed_in_y || p.y.dtype == DType::f32, "a sum of products is kept in f32, not {}",
                 name_of(p.y.dtype));
  if (p.size.rows == 0 || p.size.cols == 0) return false;
  if (p.size.inner == 0) {
    fill_zero(p);
    return false;
  }
  if (in_leaves(p)) {
    make_leaf_kernels(p);
    return true;
  }
  for (std::int64_t s = 0; s < slice_count(p, whole_depth(p)); ++s) make_kernels(slice_of(p, s));
  return true;
}

/// All of `area`, by all threads of the enclosing parallel region, from shared packed operands. Ends with a barrier.
void multiply_area(const Slice& slice, const Panel& area, const Workspace& mine, char* shared_a, char* shared_b) {
  const std::int64_t row_bytes = slice.row_bytes();
  const bool pack = !slice.a_is_ready() || area.m1 % kTileRows != slice.padded_rows(area.m1 % kTileRows);
  pack_area(slice, area, pack ? shared_a : nullptr, shared_b);
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

bool needs_temporary(const Product& p) { return p.y.dtype == DType::bf16 && slice_count(p, whole_depth(p)) > 1; }

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
  bool any_leaves = false;
  for (std::int64_t g = 0; g < count; ++g) {
    const Product p = product(g);
    prepare(p);
    any_leaves = any_leaves || in_leaves(p);
  }
  const std::int64_t waiting_floats = kTemporaryBytes / std::int64_t(sizeof(float));
  float* waiting = any_leaves ? scratch.take<float>(waiting_floats) : nullptr;
#pragma omp parallel
  {
    const Workspace mine = workspaces.mine();
    for (std::int64_t g = 0; g < count; ++g) {
      const Product p = product(g);
      if (p.size.rows == 0 || p.size.cols == 0 || p.size.inner == 0) continue;
      if (in_leaves(p)) {
        multiply_leaves(p, mine, shared_a, shared_b, waiting);
        continue;
      }
      for (std::int64_t s = 0; s < slice_count(p, whole_depth(p)); ++s)
        multiply_slice(slice_of(p, s), mine, shared_a, shared_b);
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
          for (std::int64_t s = 0; s < slice_count(p, whole_depth(p)); ++s) {
            const Slice slice = slice_of(p, s);
            const char* b = mine.b;
            if (p.packed_b != nullptr) {
              b = p.packed_b + n * slice.column_bytes();
            } else {
              pack_b(mine.b, slice.dtype, slice.window_b(n, slice.cols_at(n)), slice.packed_depth(),
                     slice.padded_cols_at(n), slice.layout(n));
            }
            multiply_panel(slice, panel, mine, nullptr, b);
          }
        }
      }
    }
  }
}

bool packs_whole(DType dtype, std::int64_t depth) {
  const bool own_type = (dtype == DType::f32 || dtype == DType::bf16) && tile_dtype(dtype) == dtype;
  return own_type && TileKernel::reads_blocks(dtype) && depth > 0 && depth <= max_depth(dtype);
}

std::int64_t whole_b_size(DType dtype, std::int64_t depth, std::int64_t cols) {
  return round_up(depth, depth_step(dtype)) * round_up(cols, kTileColStep);
}

void pack_whole_b(KernelContext& context, const Tensor& packed, const Tensor& b, bool transpose_b) {
  const std::int64_t rows = transpose_b ? b.cols : b.rows, cols = transpose_b ? b.rows : b.cols;
  const std::int64_t depth = round_up(rows, depth_step(b.dtype));
  const PackedLayout layout = TileKernel::blocks_of(b.dtype);
  const std::size_t block_bytes = std::size_t(depth * kTileColStep) * size_of(b.dtype);
  ScratchScope scratch(context);
  const Workspaces workspaces(scratch);
#pragma omp parallel
  {
    // Packing writes here and there, which memory is slow at: a block is made in the cache and moved in one run.
    char* const block = workspaces.mine().b;
#pragma omp for collapse(2) schedule(dynamic)
    for (std::int64_t e = 0; e < b.batch; ++e) {
      for (std::int64_t n = 0; n < cols; n += kTileColStep) {
        const Tensor matrix = b.matrix(e);
        const std::int64_t width = std::min(kTileColStep, cols - n);
        pack_b(block, b.dtype, {&matrix, transpose_b, 0, rows, n, width}, depth, kTileColStep, layout);
        std::memcpy(packed.matrix(e).offset_by(n * depth).data, block, block_bytes);
      }
    }
  }
}

std::size_t gemm_scratch_bytes() {
  return std::size_t(2 * kSharedBytes + kTemporaryBytes + omp_get_max_threads() * kThreadBytes);
}

}  // namespace flanmoe::cpu
