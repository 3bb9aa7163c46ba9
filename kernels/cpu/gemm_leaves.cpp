#include "kernels/cpu/gemm_leaves.hpp"

#include <array>
#include <bit>

#include "kernels/cpu/leaf_tile.hpp"

namespace flanmoe::cpu {
namespace {

constexpr std::int64_t kRunLeaves = kMostLeavesOfTile;  // most leaves that are summed before anything is written

/// How a product whose depth is cut into leaves is computed. A run of leaves, as many as fit, is packed at a time, and
/// their tiles are summed in registers where leaf_tile() can, else in cache. Sums of several runs, and slices of a leaf
/// that is deeper than a tile, wait in memory.
struct LeafPlan {
  const Product* product;
  std::int64_t leaves, run_leaves, panel_cols;
  std::int64_t row_bytes = 0;  // of the operands of one run, packed, at most
  bool deep = false;           // some leaf has several slices; then a run is one leaf
  bool in_registers = false;   // tiles of a run are summed by leaf_tile()

  explicit LeafPlan(const Product& p)
      : product(&p), leaves(std::int64_t(p.leaves.size()) - 1), run_leaves(std::min(leaves, kRunLeaves)) {
    const std::int64_t most = max_depth(tile_dtype(p.a.dtype));
    for (std::int64_t leaf = 0; leaf < leaves; ++leaf) deep = deep || slice_count(p, depth(leaf)) > 1;
    if (deep) run_leaves = 1;
    in_registers = !deep && deepest_leaf() <= kLeafTileDepth && has_leaf_tiles(tile_dtype(p.a.dtype));
    std::int64_t deepest = deepest_run();
    for (; deepest > most && run_leaves > 1; deepest = deepest_run()) run_leaves /= 2;
    row_bytes = deepest * std::int64_t(size_of(tile_dtype(p.a.dtype)));
    panel_cols = panel_cols_for(p, deepest, in_registers ? 1 : run_leaves);
    if (in_registers) panel_cols = std::min(panel_cols, 2 * kTileCols);  // so that there is something for every thread
  }

  Depth depth(std::int64_t leaf) const {
    const std::int64_t begin = product->leaves[std::size_t(leaf)];
    return {begin - product->leaves[0], product->leaves[std::size_t(leaf) + 1] - begin};
  }
  Slice slice(std::int64_t leaf, std::int64_t index) const {
    Slice slice = slice_in(*product, depth(leaf), index);
    slice.panel_cols = panel_cols;
    return slice;
  }
  std::int64_t runs() const { return leaves / run_leaves; }
  /// Sums that wait in memory: of runs, as in a binary counter, and of the slices of a leaf.
  std::int64_t buffers() const { return std::int64_t(std::bit_width(std::uint64_t(runs()))) - 1 + (deep ? 1 : 0); }

  /// Of y, so that packed operands and the sums that wait fit into their memory.
  Panel largest_area() const {
    std::int64_t rows = std::min(kSharedBytes / row_bytes, round_up(product->size.rows, kTileRows));
    std::int64_t cols = kSharedBytes / row_bytes / panel_cols * panel_cols;
    if (buffers() > 0) {
      const std::int64_t fit = kTemporaryBytes / std::int64_t(sizeof(float)) / buffers();
      rows = std::min(rows, fit / panel_cols);
      cols = std::min(cols, std::max(panel_cols, fit / rows / panel_cols * panel_cols));
    }
    rows = rows / kTileRows * kTileRows;
    FLANMOE_EXPECT(rows > 0 && cols > 0, "{} leaves are too many for one product", leaves);
    return {0, rows, 0, cols};
  }

 private:
  std::int64_t deepest_leaf() const {
    std::int64_t deepest = 0;
    for (std::int64_t leaf = 0; leaf < leaves; ++leaf) {
      if (depth(leaf).count > 0) deepest = std::max(deepest, slice_in(*product, depth(leaf), 0).padded_depth);
    }
    return deepest;
  }
  /// Packed depth of the deepest run; of a leaf with several slices, one of them.
  std::int64_t deepest_run() const {
    std::int64_t deepest = depth_step(tile_dtype(product->a.dtype));
    for (std::int64_t first = 0; first < leaves; first += run_leaves) {
      std::int64_t sum = 0;
      for (std::int64_t leaf = first; leaf < first + run_leaves; ++leaf) {
        if (depth(leaf).count > 0) sum += slice_in(*product, depth(leaf), 0).packed_depth();
      }
      deepest = std::max(deepest, sum);
    }
    return deepest;
  }
};

/// The sum of `leaves` numbers that are `distance` apart, along one binary tree.
template <std::int64_t leaves>
float tree_sum(const float* c, std::int64_t distance) {
  if constexpr (leaves == 1) return *c;
  if constexpr (leaves > 1) {
    return tree_sum<leaves / 2>(c, distance) + tree_sum<leaves / 2>(c + leaves / 2 * distance, distance);
  }
}

/// to[j] = the sum over the leaves of c[leaf * distance + j]; to may be c.
template <std::int64_t leaves>
void sum_row(float* to, const float* c, std::int64_t distance, std::int64_t cols) {
#pragma omp simd
  for (std::int64_t j = 0; j < cols; ++j) to[j] = tree_sum<leaves>(c + j, distance);
}

void add_row(float* to, const float* from, std::int64_t cols) {
#pragma omp simd
  for (std::int64_t j = 0; j < cols; ++j) to[j] += from[j];
}

/// One run of leaves of one area of y, or one slice of a deep leaf: operands packed for all threads, and the sums of
/// this area that wait.
struct LeafRun {
  const LeafPlan& plan;
  Panel area;
  std::int64_t run, index, slices;  // slice `index` of so many
  float* waiting;
  std::array<Slice, kRunLeaves> slice = {};
  std::array<const char*, kRunLeaves> a = {}, b = {};  // null where a leaf has no rows

  /// A row of a sum that waits.
  float* waiting_row(std::int64_t buffer, std::int64_t i, std::int64_t n) const {
    const std::int64_t cols = area.n1 - area.n0;
    return waiting + (buffer * (area.m1 - area.m0) + i - area.m0) * cols + n - area.n0;
  }

  /// By all threads of the enclosing parallel region; ends without a barrier.
  void pack(char* shared_a, char* shared_b) {
    const std::int64_t rows = round_up(area.m1 - area.m0, kTileRows);
    const std::int64_t cols = round_up(area.n1 - area.n0, kTileColStep);
    for (std::int64_t l = 0; l < plan.run_leaves; ++l) {
      const auto i = std::size_t(l);
      const std::int64_t leaf = run * plan.run_leaves + l;
      a[i] = b[i] = nullptr;
      if (plan.depth(leaf).count == 0) continue;
      slice[i] = plan.slice(leaf, index);
      a[i] = shared_a;
      b[i] = shared_b;
      pack_area(slice[i], area, shared_a, shared_b);
      shared_a += rows * slice[i].row_bytes();
      shared_b += cols * slice[i].column_bytes();
    }
  }

  /// What comes of row i, from column n, of the sum of this run, in `c`.
  void finish_row(float* c, std::int64_t i, std::int64_t n, std::int64_t cols) const {
    const Product& p = *plan.product;
    if (slices > 1) {
      float* slice_sum = waiting_row(plan.buffers() - 1, i, n);
      if (index == 0) {
        std::copy_n(c, cols, slice_sum);
      } else {
        add_row(slice_sum, c, cols);
      }
      if (index + 1 < slices) return;
      std::copy_n(slice_sum, cols, c);
    }
    // As in a binary counter: every second run completes a pair, every fourth a pair of pairs.
    std::int64_t buffer = 0;
    for (std::int64_t count = run + 1; count % 2 == 0; count /= 2) add_row(c, waiting_row(buffer++, i, n), cols);
    if (run + 1 < plan.runs()) {
      std::copy_n(c, cols, waiting_row(buffer, i, n));
    } else if (p.accumulate) {
      add_row(p.y.row<float>(i) + n, c, cols);
    } else {
      std::copy_n(c, cols, p.y.row<float>(i) + n);
    }
  }

  /// Whether the sum of this run is what y is to hold.
  bool is_all_of_y() const { return plan.runs() == 1 && slices == 1 && !plan.product->accumulate; }

  void sum_rows(float* tiles, std::int64_t distance, const Panel& panel) const {
    const std::int64_t cols = panel.n1 - panel.n0;
    const std::int64_t ld = distance / kTileRows;
    const bool only = is_all_of_y();
    for (std::int64_t i = panel.m0; i < panel.m1; ++i) {
      float* c = tiles + (i - panel.m0) * ld;
      float* to = only ? plan.product->y.row<float>(i) + panel.n0 : c;
      switch (plan.run_leaves) {
        case 8: sum_row<8>(to, c, distance, cols); break;
        case 4: sum_row<4>(to, c, distance, cols); break;
        case 2: sum_row<2>(to, c, distance, cols); break;
        default: break;
      }
      if (!only) finish_row(c, i, panel.n0, cols);
    }
  }

  /// The operands of each leaf for a tile.
  std::array<PackedLeaf, kRunLeaves> leaves_at(std::int64_t m, std::int64_t n) const {
    std::array<PackedLeaf, kRunLeaves> leaves = {};
    for (std::size_t l = 0; l < std::size_t(plan.run_leaves); ++l) {
      const Slice& s = slice[l];
      if (a[l] == nullptr) continue;
      leaves[l] = {a[l] + (m - area.m0) * s.row_bytes(), s.row_bytes(), b[l] + (n - area.n0) * s.column_bytes(),
                   kTileColStep * s.column_bytes(), words_of(s.dtype, s.depth, s.padded_depth)};
    }
    return leaves;
  }

  /// Tiles of the sum of all leaves, into y itself where nothing else is to be done.
  void multiply_in_registers(const Panel& panel, float* tile) const {
    const Product& p = *plan.product;
    const std::int64_t rows = panel.m1 - panel.m0;
    const DType dtype = tile_dtype(p.a.dtype);
    std::int64_t n = panel.n0;
    const std::int64_t whole_blocks = is_all_of_y() ? (panel.n1 - n) / kTileColStep : 0;
    if (whole_blocks > 0) {
      const std::array<PackedLeaf, kRunLeaves> all = leaves_at(panel.m0, n);
      leaf_tile(dtype, p.y.row<float>(panel.m0) + n, p.y.stride, rows, whole_blocks,
                std::span(all).first(std::size_t(plan.run_leaves)), p.alpha);
      n += whole_blocks * kTileColStep;
    }
    for (; n < panel.n1; n += kTileColStep) {
      const std::array<PackedLeaf, kRunLeaves> all = leaves_at(panel.m0, n);
      const std::int64_t cols = std::min(kTileColStep, panel.n1 - n);
      leaf_tile(dtype, tile, kTileColStep, rows, 1, std::span(all).first(std::size_t(plan.run_leaves)), p.alpha);
      for (std::int64_t i = 0; i < rows; ++i) finish_row(tile + i * kTileColStep, panel.m0 + i, n, cols);
    }
  }

  /// A tile of each leaf side by side in cache, then their sum.
  void multiply_in_cache(const Panel& panel, float* tiles) const {
    const std::int64_t rows = panel.m1 - panel.m0;
    const std::int64_t ld = round_up(panel.n1 - panel.n0, kTileColStep);
    const std::int64_t distance = kTileRows * ld;
    const float alpha = plan.product->alpha;
    for (std::int64_t l = 0; l < plan.run_leaves; ++l) {
      float* c = tiles + l * distance;
      if (a[std::size_t(l)] == nullptr) {
        std::fill_n(c, rows * ld, 0.0F);
        continue;
      }
      const Slice& s = slice[std::size_t(l)];
      s.kernel(rows, panel.n0)(c, a[std::size_t(l)] + (panel.m0 - area.m0) * s.row_bytes(),
                               b[std::size_t(l)] + (panel.n0 - area.n0) * s.column_bytes());
      if (alpha == 1.0F) continue;
      for (std::int64_t i = 0; i < rows * ld; ++i) c[i] *= alpha;
    }
    sum_rows(tiles, distance, panel);
  }

  void multiply(const Panel& panel, float* tiles) const {
    plan.in_registers ? multiply_in_registers(panel, tiles) : multiply_in_cache(panel, tiles);
  }
};

}  // namespace

void make_leaf_kernels(const Product& p) {
  const LeafPlan plan(p);
  plan.largest_area();
  for (std::int64_t leaf = 0; leaf < plan.leaves; ++leaf) {
    const std::int64_t slices = slice_count(p, plan.depth(leaf));
    FLANMOE_EXPECT(slices <= 1 || p.alpha == 1.0F, "a leaf of {} slices is not scaled", slices);
    for (std::int64_t s = 0; s < slices && !plan.in_registers; ++s) make_kernels(plan.slice(leaf, s));
  }
}

void multiply_leaves(const Product& p, const Workspace& mine, char* shared_a, char* shared_b, float* waiting) {
  const LeafPlan plan(p);
  const Panel largest = plan.largest_area();
  const std::int64_t most_rows = largest.m1, most_cols = largest.n1;
  for (std::int64_t n0 = 0; n0 < p.size.cols; n0 += most_cols) {
    for (std::int64_t m0 = 0; m0 < p.size.rows; m0 += most_rows) {
      const Panel area{m0, std::min(m0 + most_rows, p.size.rows), n0, std::min(n0 + most_cols, p.size.cols)};
      for (std::int64_t run = 0; run < plan.runs(); ++run) {
        const std::int64_t slices = plan.deep ? std::max<std::int64_t>(1, slice_count(p, plan.depth(run))) : 1;
        for (std::int64_t index = 0; index < slices; ++index) {
          LeafRun part{plan, area, run, index, slices, waiting};
          part.pack(shared_a, shared_b);
#pragma omp barrier
#pragma omp for collapse(2) schedule(dynamic)
          for (std::int64_t n = area.n0; n < area.n1; n += plan.panel_cols) {
            for (std::int64_t m = area.m0; m < area.m1; m += kTileRows) {
              part.multiply({m, std::min(m + kTileRows, area.m1), n, std::min(n + plan.panel_cols, area.n1)}, mine.c);
            }
          }
        }
      }
    }
  }
}

}  // namespace flanmoe::cpu
