// Adafactor on lists of matrices. Statistics are sums in fp64: of tiles, in a fixed order, then of the tiles, in a
// fixed order. Clipping needs all of an update before any of it is applied, so a step is six launches for all
// matrices of a list together, or three where none has factors.
#include <algorithm>
#include <cmath>

#include "kernels/cuda/adafactor.hpp"
#include "kernels/cuda/elements.cuh"
#include "kernels/cuda/matrix_list.cuh"
#include "kernels/optimizer_checks.hpp"

namespace flanmoe::cuda {
namespace {

/// One block passes over a tile; a thread over four columns, which are one access where they are adjacent.
constexpr int kTileRows = 64, kColumns = 4, kTileCols = kColumns * kThreads, kWarps = kThreads / kWarp;

/// What is passed from kernel to kernel in scratch.
struct Statistics {
  double* row;     // row tiles of columns x rows: partial sums of squares of a row
  double* col;     // row tiles x cols: of a column
  double* update;  // a tile: sum of squares of the unclipped update
  double* weight;  // a tile: of the parameter
  double* scalar;  // [0] mean of the row factor; [1] what the update is multiplied by
};

struct Matrix {
  Elements<float> p;
  Elements<const float> g;
  Elements<float> v, row_factor;
  float* col_factor;
  std::int64_t rows, cols, col_tiles;
  Statistics s;
  bool wide, factored, decays;
};

/// What is the same for all matrices.
struct Step {
  float scale, decay_f, rest_f, epsilon1_f, weight_decay;
  double decay, epsilon1, epsilon2, learning_rate, clip;
  bool by_parameter;
};

/// A block's part of a matrix.
struct Tile {
  std::int64_t index, first_row, end_row, column;
};
__device__ inline Tile tile_of(const Matrix& o, std::int64_t index) {
  const std::int64_t first = index / o.col_tiles * kTileRows;
  return {index, first, std::min<std::int64_t>(first + kTileRows, o.rows), index % o.col_tiles};
}

/// Column of element i of this thread in tile column `tile`.
__device__ inline std::int64_t column_of(const Matrix& o, std::int64_t tile, int i) {
  return tile * kTileCols + (o.wide ? int(threadIdx.x) * kColumns + i : i * kThreads + int(threadIdx.x));
}
/// This thread's four elements of a row; zero past the last column.
__device__ inline void load_columns(float (&x)[kColumns], const Matrix& o, const float* row, std::int64_t tile) {
  if (o.wide) {
    const std::int64_t col = column_of(o, tile, 0);
    if (col < o.cols) {
      load_floats(x, row + col);
    } else {
#pragma unroll
      for (int i = 0; i < kColumns; ++i) x[i] = 0;
    }
    return;
  }
#pragma unroll
  for (int i = 0; i < kColumns; ++i) {
    const std::int64_t col = column_of(o, tile, i);
    x[i] = col < o.cols ? row[col] : 0;
  }
}
__device__ inline void store_columns(float* row, const float (&x)[kColumns], const Matrix& o, std::int64_t tile) {
  if (o.wide) {
    const std::int64_t col = column_of(o, tile, 0);
    if (col < o.cols) store_floats(row + col, x);
    return;
  }
#pragma unroll
  for (int i = 0; i < kColumns; ++i) {
    const std::int64_t col = column_of(o, tile, i);
    if (col < o.cols) row[col] = x[i];
  }
}

/// Sums of g^2 + epsilon1 over the rows and the columns of a tile, and of p^2.
__device__ inline void factor_sums(const Matrix& o, const Step& step, Tile tile) {
  double* of_row = shared_memory<double>();  // warps x rows of the tile
  double* room = shared_memory<double>(sizeof(double) * kWarps * kTileRows);
  const int count = int(tile.end_row - tile.first_row);
  const int warp = int(threadIdx.x) / kWarp, lane = int(threadIdx.x) % kWarp;
  double col_sum[kColumns] = {0, 0, 0, 0}, weight = 0;
  for (int r = 0; r < count; ++r) {
    float g[kColumns], p[kColumns] = {0, 0, 0, 0};
    load_columns(g, o, o.g.at(tile.first_row + r, 0), tile.column);
    if (step.by_parameter) load_columns(p, o, o.p.at(tile.first_row + r, 0), tile.column);
    double row_sum = 0;
#pragma unroll
    for (int i = 0; i < kColumns; ++i) {
      const double x = double(g[i] * step.scale);
      const double square = column_of(o, tile.column, i) < o.cols ? x * x + step.epsilon1 : 0;
      row_sum += square;
      col_sum[i] += square;
      weight += double(p[i]) * double(p[i]);
    }
    row_sum = warp_reduce(row_sum);
    if (lane == 0) of_row[warp * kTileRows + r] = row_sum;
  }
#pragma unroll
  for (int i = 0; i < kColumns; ++i) {
    const std::int64_t col = column_of(o, tile.column, i);
    if (col < o.cols) o.s.col[tile.first_row / kTileRows * o.cols + col] = col_sum[i];
  }
  weight = block_reduce(weight, room);  // also the barrier behind the row sums
  if (threadIdx.x == 0) o.s.weight[tile.index] = weight;
  for (int r = int(threadIdx.x); r < count; r += kThreads) {
    double sum = 0;
    for (int w = 0; w < kWarps; ++w) sum += of_row[w * kTileRows + r];
    o.s.row[tile.column * o.rows + tile.first_row + r] = sum;
  }
}

/// The new full second moment, and the sums of squares of u and of p in a tile.
__device__ inline void full_sums(const Matrix& o, const Step& step, Tile tile) {
  double sum = 0, weight = 0;
  for (std::int64_t r = tile.first_row; r < tile.end_row; ++r) {
    float g[kColumns], v[kColumns], p[kColumns] = {0, 0, 0, 0};
    load_columns(g, o, o.g.at(r, 0), tile.column);
    load_columns(v, o, o.v.at(r, 0), tile.column);
    if (step.by_parameter) load_columns(p, o, o.p.at(r, 0), tile.column);
#pragma unroll
    for (int i = 0; i < kColumns; ++i) {
      const float x = g[i] * step.scale;
      v[i] = step.decay_f * v[i] + step.rest_f * (x * x + step.epsilon1_f);
      const float u = column_of(o, tile.column, i) < o.cols ? x / sqrtf(v[i]) : 0;
      sum += double(u) * double(u);
      weight += double(p[i]) * double(p[i]);
    }
    store_columns(o.v.at(r, 0), v, o, tile.column);
  }
  double* room = shared_memory<double>();
  sum = block_reduce(sum, room);
  weight = block_reduce(weight, room);
  if (threadIdx.x == 0) {
    o.s.update[tile.index] = sum;
    o.s.weight[tile.index] = weight;
  }
}

/// A block a tile: statistics of gradients and parameters.
__global__ void __launch_bounds__(kThreads) gather_statistics(const Matrix* list, BlockMap map, Step step) {
  const BlockPlace place = map.place();
  const Matrix o = list[place.matrix];
  if (o.factored) {
    factor_sums(o, step, tile_of(o, place.block));
  } else {
    full_sums(o, step, tile_of(o, place.block));
  }
}

/// New factors from the sums: one thread a row, then one a column.
__global__ void __launch_bounds__(kThreads) blend_factors(const Matrix* list, BlockMap map, Step step) {
  const BlockPlace place = map.place();
  const Matrix o = list[place.matrix];
  const std::int64_t i = place.block * kThreads + threadIdx.x;
  if (i >= o.rows + o.cols) return;
  const bool row = i < o.rows;
  const std::int64_t at = row ? i : i - o.rows;
  const std::int64_t tiles = row ? o.col_tiles : tiles_of(o.rows, kTileRows);
  double sum = 0;
  for (std::int64_t t = 0; t < tiles; ++t) sum += row ? o.s.row[t * o.rows + at] : o.s.col[t * o.cols + at];
  float* factor = row ? o.row_factor.at(at, 0) : o.col_factor + at;
  *factor = float(step.decay * double(*factor) + (1 - step.decay) * (sum / double(row ? o.cols : o.rows)));
}

/// A block a matrix: the mean of the row factor.
__global__ void __launch_bounds__(kThreads) mean_of_rows(const Matrix* list) {
  const Matrix o = list[blockIdx.x];
  if (!o.factored) return;
  double sum = 0;
  for (std::int64_t i = threadIdx.x; i < o.rows; i += kThreads) sum += double(*o.row_factor.at(i, 0));
  sum = block_reduce(sum, shared_memory<double>());
  if (threadIdx.x == 0) o.s.scalar[0] = sum / double(o.rows);
}

/// u of one row, before clipping.
__device__ inline void factored_update(float (&u)[kColumns], const Matrix& o, float scale, double row_mean,
                                       std::int64_t row, std::int64_t tile, const float (&col_part)[kColumns]) {
  load_columns(u, o, o.g.at(row, 0), tile);
  const float row_part = float(1 / sqrt(double(*o.row_factor.at(row, 0)) / row_mean));
#pragma unroll
  for (int i = 0; i < kColumns; ++i) u[i] = u[i] * scale * row_part * col_part[i];
}
__device__ inline void column_parts(float (&part)[kColumns], const Matrix& o, std::int64_t tile) {
#pragma unroll
  for (int i = 0; i < kColumns; ++i) {
    const std::int64_t col = column_of(o, tile, i);
    part[i] = col < o.cols ? float(1 / sqrt(double(o.col_factor[col]))) : 0;
  }
}

/// A block a tile of a factored matrix: the sum of squares of u. (With a full moment it is known already.)
__global__ void __launch_bounds__(kThreads) sum_updates(const Matrix* list, BlockMap map, float scale) {
  const BlockPlace place = map.place();
  const Matrix o = list[place.matrix];
  const Tile tile = tile_of(o, place.block);
  const double row_mean = o.s.scalar[0];
  float col_part[kColumns];
  column_parts(col_part, o, tile.column);
  double sum = 0;
  for (std::int64_t r = tile.first_row; r < tile.end_row; ++r) {
    float u[kColumns];
    factored_update(u, o, scale, row_mean, r, tile.column, col_part);
#pragma unroll
    for (int i = 0; i < kColumns; ++i) sum += double(u[i]) * double(u[i]);
  }
  sum = block_reduce(sum, shared_memory<double>());
  if (threadIdx.x == 0) o.s.update[tile.index] = sum;
}

/// A block a matrix: what every element of u is multiplied by.
__global__ void __launch_bounds__(kThreads) clip_update(const Matrix* list, Step step) {
  const Matrix o = list[blockIdx.x];
  const std::int64_t tiles = o.col_tiles * tiles_of(o.rows, kTileRows);
  double update = 0, weight = 0;
  for (std::int64_t i = threadIdx.x; i < tiles; i += kThreads) {
    update += o.s.update[i];
    weight += o.s.weight[i];
  }
  double* room = shared_memory<double>();
  update = block_reduce(update, room);
  weight = block_reduce(weight, room);
  if (threadIdx.x != 0) return;
  const double size = double(o.rows) * double(o.cols);
  const double rms_u = sqrt(update / size), rms_p = sqrt(weight / size);
  const double alpha = step.learning_rate * (step.by_parameter ? fmax(rms_p, step.epsilon2) : 1.0);
  o.s.scalar[1] = alpha / fmax(1.0, rms_u / step.clip);
}

__global__ void __launch_bounds__(kThreads) apply_update(const Matrix* list, BlockMap map, Step step) {
  const BlockPlace place = map.place();
  const Matrix o = list[place.matrix];
  const Tile tile = tile_of(o, place.block);
  const float factor = float(o.s.scalar[1]), decay = o.decays ? step.weight_decay : 0;
  const double row_mean = o.factored ? o.s.scalar[0] : 1;
  float col_part[kColumns] = {0, 0, 0, 0};
  if (o.factored) column_parts(col_part, o, tile.column);
  for (std::int64_t r = tile.first_row; r < tile.end_row; ++r) {
    float u[kColumns], p[kColumns];
    if (o.factored) {
      factored_update(u, o, step.scale, row_mean, r, tile.column, col_part);
    } else {
      float v[kColumns];
      load_columns(u, o, o.g.at(r, 0), tile.column);
      load_columns(v, o, o.v.at(r, 0), tile.column);
#pragma unroll
      for (int i = 0; i < kColumns; ++i) u[i] = u[i] * step.scale / sqrtf(v[i]);
    }
    load_columns(p, o, o.p.at(r, 0), tile.column);
#pragma unroll
    for (int i = 0; i < kColumns; ++i) p[i] -= factor * u[i] + decay * p[i];
    store_columns(o.p.at(r, 0), p, o, tile.column);
  }
}

Matrix operands(DeviceScratch& scratch, const AdafactorMatrix& m) {
  const std::int64_t row_tiles = tiles_of(m.p.rows, kTileRows), col_tiles = tiles_of(m.p.cols, kTileCols);
  const bool factored = is_factored(m);
  const Statistics s{factored ? scratch.take<double>(col_tiles * m.p.rows) : nullptr,
                     factored ? scratch.take<double>(row_tiles * m.p.cols) : nullptr,
                     scratch.take<double>(row_tiles * col_tiles), scratch.take<double>(row_tiles * col_tiles),
                     scratch.take<double>(2)};
  return {elements<float>(m.p),
          elements<const float>(m.g),
          elements<float>(m.v),
          elements<float>(m.row_factor),
          m.col_factor.as<float>(),
          m.p.rows,
          m.p.cols,
          col_tiles,
          s,
          takes_packs(m.p) && takes_packs(m.g) && (factored || takes_packs(m.v)),
          factored,
          m.decays};
}

constexpr std::size_t kRoom = block_reduce_bytes<double>(kThreads);

/// Matrices that are updated together.
void update_part(KernelContext& context, std::span<const AdafactorMatrix> matrices, const Step& step) {
  DeviceScratch scratch(context);
  std::vector<Matrix> operands_of;
  BlockCount tiles, factored_tiles, lines;
  for (const AdafactorMatrix& matrix : matrices) {
    if (matrix.p.size() == 0) continue;
    const Matrix& o = operands_of.emplace_back(operands(scratch, matrix));
    const std::int64_t blocks = o.col_tiles * tiles_of(o.rows, kTileRows);
    tiles.add(blocks);
    factored_tiles.add(o.factored ? blocks : 0);
    lines.add(o.factored ? tiles_of(o.rows + o.cols, kThreads) : 0);
  }
  const Matrix* list = upload(context, std::span(operands_of));
  const BlockMap tile_map = tiles.upload(context), factored_map = factored_tiles.upload(context);
  const auto count = unsigned(operands_of.size());
  launch(gather_statistics, tiles.total(), kThreads, sizeof(double) * kWarps * kTileRows + kRoom, context, list,
         tile_map, step);
  if (factored_tiles.total() > 0) {
    launch(blend_factors, lines.total(), kThreads, 0, context, list, lines.upload(context), step);
    launch(mean_of_rows, count, kThreads, kRoom, context, list);
    launch(sum_updates, factored_tiles.total(), kThreads, kRoom, context, list, factored_map, step.scale);
  }
  launch(clip_update, count, kThreads, kRoom, context, list, step);
  launch(apply_update, tiles.total(), kThreads, 0, context, list, tile_map, step);
}

}  // namespace

void adafactor(KernelContext& context, std::span<const AdafactorMatrix> matrices, const AdafactorStep& s) {
  for (const AdafactorMatrix& matrix : matrices) expect_operands(matrix);
  const Step step{float(s.gradient_scale),
                  float(s.decay),
                  float(1 - s.decay),
                  float(s.epsilon1),
                  float(s.learning_rate * s.weight_decay),
                  s.decay,
                  s.epsilon1,
                  s.epsilon2,
                  s.learning_rate,
                  s.clip_threshold,
                  s.multiply_by_parameter_scale};
  for_parts(
      matrices, [](const AdafactorMatrix& m) { return adafactor_scratch(m.p.rows, m.p.cols); },
      [&](std::span<const AdafactorMatrix> part) { update_part(context, part, step); });
}

std::size_t adafactor_scratch(std::int64_t rows, std::int64_t cols) {
  const std::int64_t row_tiles = tiles_of(rows, kTileRows), col_tiles = tiles_of(cols, kTileCols);
  return scratch_size<double>(col_tiles * rows) + scratch_size<double>(row_tiles * cols) +
         2 * scratch_size<double>(row_tiles * col_tiles) + scratch_size<double>(2);
}

}  // namespace flanmoe::cuda
