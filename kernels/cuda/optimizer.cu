// Adafactor and AdamW. Statistics are sums in fp64: of tiles, in a fixed order, then of the tiles, in a fixed order.
#include <algorithm>
#include <cmath>

#include "kernels/cuda/elements.cuh"
#include "kernels/optimizer.hpp"

namespace flanmoe::cuda {
namespace {

// ---- AdamW --------------------------------------------------------------------------------------------------------

template <int width>
struct AdamW {
  Elements<float> p, m, v;
  Elements<const float> g;
  float scale, beta1, rest1, beta2, rest2, bias1, bias2, epsilon, rate, decay;
  __device__ void operator()(std::int64_t row, std::int64_t piece) const {
    const std::int64_t col = piece * width;
    float weight[width], mean[width], square[width], gradient[width];
    load_floats(weight, p.at(row, col));
    load_floats(mean, m.at(row, col));
    load_floats(square, v.at(row, col));
    load_floats(gradient, g.at(row, col));
#pragma unroll
    for (int i = 0; i < width; ++i) {
      const float x = gradient[i] * scale;
      mean[i] = beta1 * mean[i] + rest1 * x;
      square[i] = beta2 * square[i] + rest2 * x * x;
      weight[i] -= rate * (mean[i] / bias1 / (sqrtf(square[i] / bias2) + epsilon) + decay * weight[i]);
    }
    store_floats(m.at(row, col), mean);
    store_floats(v.at(row, col), square);
    store_floats(p.at(row, col), weight);
  }
};

void adamw(KernelContext& context, const Tensor& p, const Tensor& m, const Tensor& v, const Tensor& g,
           const AdamWStep& step) {
  for (const Tensor* tensor : {&m, &v, &g}) expect_like(*tensor, p, "operand");
  const double bias1 = 1 - std::pow(step.beta1, double(step.step + 1));
  const double bias2 = 1 - std::pow(step.beta2, double(step.step + 1));
  over_elements(context, {p, m, v, g}, [&](auto width) {
    return AdamW<width>{elements<float>(p),
                        elements<float>(m),
                        elements<float>(v),
                        elements<const float>(g),
                        float(step.gradient_scale),
                        float(step.beta1),
                        float(1 - step.beta1),
                        float(step.beta2),
                        float(1 - step.beta2),
                        float(bias1),
                        float(bias2),
                        float(step.epsilon),
                        float(step.learning_rate),
                        float(step.weight_decay)};
  });
}

// ---- Adafactor ------------------------------------------------------------------------------------------------------

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

struct Adafactor {
  Elements<float> p;
  Elements<const float> g;
  Elements<float> v, row_factor;  // v: full second moment; its rows are adjacent or not
  float* col_factor;
  std::int64_t rows, cols;
  Statistics s;
  bool wide;
  float scale, decay_f, rest_f, epsilon1_f, weight_decay;
  double decay, epsilon1, epsilon2, learning_rate, clip;
  bool by_parameter;
};

__host__ __device__ constexpr std::int64_t tiles_of(std::int64_t n, std::int64_t tile) { return (n + tile - 1) / tile; }

/// Column of element i of this thread in tile column `tile`.
__device__ inline std::int64_t column_of(const Adafactor& o, std::int64_t tile, int i) {
  return tile * kTileCols + (o.wide ? int(threadIdx.x) * kColumns + i : i * kThreads + int(threadIdx.x));
}
/// This thread's four elements of a row; zero past the last column.
__device__ inline void load_columns(float (&x)[kColumns], const Adafactor& o, const float* row, std::int64_t tile) {
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
__device__ inline void store_columns(float* row, const float (&x)[kColumns], const Adafactor& o, std::int64_t tile) {
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
__device__ inline std::int64_t tile_index() { return std::int64_t(blockIdx.y) * gridDim.x + blockIdx.x; }

/// Sums of g^2 + epsilon1 over the rows and the columns of a tile, and of p^2.
__global__ void __launch_bounds__(kThreads) factor_sums(Adafactor o) {
  double* of_row = shared_memory<double>();  // warps x rows of the tile
  double* room = shared_memory<double>(sizeof(double) * kWarps * kTileRows);
  const std::int64_t first = std::int64_t(blockIdx.y) * kTileRows, tile = blockIdx.x;
  const int count = int(std::min<std::int64_t>(kTileRows, o.rows - first));
  const int warp = int(threadIdx.x) / kWarp, lane = int(threadIdx.x) % kWarp;
  double col_sum[kColumns] = {0, 0, 0, 0}, weight = 0;
  for (int r = 0; r < count; ++r) {
    float g[kColumns], p[kColumns] = {0, 0, 0, 0};
    load_columns(g, o, o.g.at(first + r, 0), tile);
    if (o.by_parameter) load_columns(p, o, o.p.at(first + r, 0), tile);
    double row_sum = 0;
#pragma unroll
    for (int i = 0; i < kColumns; ++i) {
      const double x = double(g[i] * o.scale);
      const double square = column_of(o, tile, i) < o.cols ? x * x + o.epsilon1 : 0;
      row_sum += square;
      col_sum[i] += square;
      weight += double(p[i]) * double(p[i]);
    }
    row_sum = warp_reduce(row_sum);
    if (lane == 0) of_row[warp * kTileRows + r] = row_sum;
  }
#pragma unroll
  for (int i = 0; i < kColumns; ++i) {
    const std::int64_t col = column_of(o, tile, i);
    if (col < o.cols) o.s.col[std::int64_t(blockIdx.y) * o.cols + col] = col_sum[i];
  }
  weight = block_reduce(weight, room);  // also the barrier behind the row sums
  if (threadIdx.x == 0) o.s.weight[tile_index()] = weight;
  for (int r = int(threadIdx.x); r < count; r += kThreads) {
    double sum = 0;
    for (int w = 0; w < kWarps; ++w) sum += of_row[w * kTileRows + r];
    o.s.row[tile * o.rows + first + r] = sum;
  }
}

/// New factors from the sums: one thread a row, then one a column.
__global__ void __launch_bounds__(kThreads) blend_factors(Adafactor o) {
  const std::int64_t step = std::int64_t(gridDim.x) * kThreads;
  const std::int64_t row_tiles = tiles_of(o.rows, kTileRows), col_tiles = tiles_of(o.cols, kTileCols);
  for (std::int64_t i = std::int64_t(blockIdx.x) * kThreads + threadIdx.x; i < o.rows + o.cols; i += step) {
    double sum = 0;
    const bool row = i < o.rows;
    const std::int64_t at = row ? i : i - o.rows;
    for (std::int64_t t = 0; t < (row ? col_tiles : row_tiles); ++t) {
      sum += row ? o.s.row[t * o.rows + at] : o.s.col[t * o.cols + at];
    }
    float* factor = row ? o.row_factor.at(at, 0) : o.col_factor + at;
    *factor = float(o.decay * double(*factor) + (1 - o.decay) * (sum / double(row ? o.cols : o.rows)));
  }
}

/// One block: the mean of the row factor.
__global__ void __launch_bounds__(kThreads) mean_of_rows(Adafactor o) {
  double sum = 0;
  for (std::int64_t i = threadIdx.x; i < o.rows; i += kThreads) sum += double(*o.row_factor.at(i, 0));
  sum = block_reduce(sum, shared_memory<double>());
  if (threadIdx.x == 0) o.s.scalar[0] = sum / double(o.rows);
}

/// u of one row, before clipping.
__device__ inline void factored_update(float (&u)[kColumns], const Adafactor& o, std::int64_t row, std::int64_t tile,
                                       const float (&col_part)[kColumns]) {
  load_columns(u, o, o.g.at(row, 0), tile);
  const float row_part = float(1 / sqrt(double(*o.row_factor.at(row, 0)) / o.s.scalar[0]));
#pragma unroll
  for (int i = 0; i < kColumns; ++i) u[i] = u[i] * o.scale * row_part * col_part[i];
}
__device__ inline void column_parts(float (&part)[kColumns], const Adafactor& o, std::int64_t tile) {
#pragma unroll
  for (int i = 0; i < kColumns; ++i) {
    const std::int64_t col = column_of(o, tile, i);
    part[i] = col < o.cols ? float(1 / sqrt(double(o.col_factor[col]))) : 0;
  }
}

/// Factored: the sum of squares of u in every tile.
__global__ void __launch_bounds__(kThreads) factored_sums(Adafactor o) {
  const std::int64_t first = std::int64_t(blockIdx.y) * kTileRows;
  const std::int64_t end = std::min<std::int64_t>(first + kTileRows, o.rows);
  float col_part[kColumns];
  column_parts(col_part, o, blockIdx.x);
  double sum = 0;
  for (std::int64_t r = first; r < end; ++r) {
    float u[kColumns];
    factored_update(u, o, r, blockIdx.x, col_part);
#pragma unroll
    for (int i = 0; i < kColumns; ++i) sum += double(u[i]) * double(u[i]);
  }
  sum = block_reduce(sum, shared_memory<double>());
  if (threadIdx.x == 0) o.s.update[tile_index()] = sum;
}

/// Full: the new second moment, and the sums of squares of u and of p in every tile.
__global__ void __launch_bounds__(kThreads) full_sums(Adafactor o) {
  const std::int64_t first = std::int64_t(blockIdx.y) * kTileRows;
  const std::int64_t end = std::min<std::int64_t>(first + kTileRows, o.rows);
  double sum = 0, weight = 0;
  for (std::int64_t r = first; r < end; ++r) {
    float g[kColumns], v[kColumns], p[kColumns] = {0, 0, 0, 0};
    load_columns(g, o, o.g.at(r, 0), blockIdx.x);
    load_columns(v, o, o.v.at(r, 0), blockIdx.x);
    if (o.by_parameter) load_columns(p, o, o.p.at(r, 0), blockIdx.x);
#pragma unroll
    for (int i = 0; i < kColumns; ++i) {
      const float x = g[i] * o.scale;
      v[i] = o.decay_f * v[i] + o.rest_f * (x * x + o.epsilon1_f);
      const float u = column_of(o, blockIdx.x, i) < o.cols ? x / sqrtf(v[i]) : 0;
      sum += double(u) * double(u);
      weight += double(p[i]) * double(p[i]);
    }
    store_columns(o.v.at(r, 0), v, o, blockIdx.x);
  }
  double* room = shared_memory<double>();
  sum = block_reduce(sum, room);
  weight = block_reduce(weight, room);
  if (threadIdx.x == 0) {
    o.s.update[tile_index()] = sum;
    o.s.weight[tile_index()] = weight;
  }
}

/// One block: what every element of u is multiplied by.
__global__ void __launch_bounds__(kThreads) clip_update(Adafactor o, std::int64_t tiles) {
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
  const double alpha = o.learning_rate * (o.by_parameter ? fmax(rms_p, o.epsilon2) : 1.0);
  o.s.scalar[1] = alpha / fmax(1.0, rms_u / o.clip);
}

template <bool factored>
__global__ void __launch_bounds__(kThreads) apply_update(Adafactor o) {
  const std::int64_t first = std::int64_t(blockIdx.y) * kTileRows;
  const std::int64_t end = std::min<std::int64_t>(first + kTileRows, o.rows);
  const float factor = float(o.s.scalar[1]);
  float col_part[kColumns] = {0, 0, 0, 0};
  if (factored) column_parts(col_part, o, blockIdx.x);
  for (std::int64_t r = first; r < end; ++r) {
    float u[kColumns], p[kColumns];
    if (factored) {
      factored_update(u, o, r, blockIdx.x, col_part);
    } else {
      float v[kColumns];
      load_columns(u, o, o.g.at(r, 0), blockIdx.x);
      load_columns(v, o, o.v.at(r, 0), blockIdx.x);
#pragma unroll
      for (int i = 0; i < kColumns; ++i) u[i] = u[i] * o.scale / sqrtf(v[i]);
    }
    load_columns(p, o, o.p.at(r, 0), blockIdx.x);
#pragma unroll
    for (int i = 0; i < kColumns; ++i) p[i] -= factor * u[i] + o.weight_decay * p[i];
    store_columns(o.p.at(r, 0), p, o, blockIdx.x);
  }
}

dim3 tile_grid(const Tensor& p) { return {blocks_for(p.cols, kTileCols), blocks_for(p.rows, kTileRows)}; }

Adafactor operands(const Tensor& p, const Tensor& g, const Tensor& v, const Tensor& row_factor,
                   const Tensor& col_factor, const AdafactorStep& step) {
  bool wide = takes_packs(p) && takes_packs(g);
  if (!v.absent()) wide = wide && takes_packs(v);
  return {elements<float>(p),
          elements<const float>(g),
          elements<float>(v),
          elements<float>(row_factor),
          col_factor.as<float>(),
          p.rows,
          p.cols,
          {},
          wide,
          float(step.gradient_scale),
          float(step.decay),
          float(1 - step.decay),
          float(step.epsilon1),
          float(step.learning_rate * step.weight_decay),
          step.decay,
          step.epsilon1,
          step.epsilon2,
          step.learning_rate,
          step.clip_threshold,
          step.multiply_by_parameter_scale};
}

Statistics take_statistics(DeviceScratch& scratch, std::int64_t rows, std::int64_t cols, bool factored) {
  const std::int64_t row_tiles = tiles_of(rows, kTileRows), col_tiles = tiles_of(cols, kTileCols);
  return {factored ? scratch.take<double>(col_tiles * rows) : nullptr,
          factored ? scratch.take<double>(row_tiles * cols) : nullptr, scratch.take<double>(row_tiles * col_tiles),
          scratch.take<double>(row_tiles * col_tiles), scratch.take<double>(2)};
}

constexpr std::size_t kRoom = block_reduce_bytes<double>(kThreads);

void adafactor_factored(KernelContext& context, const Tensor& p, const Tensor& row_factor, const Tensor& col_factor,
                        const Tensor& g, const AdafactorStep& step) {
  expect_like(g, p, "g");
  expect_matrix(row_factor, p.dtype, p.rows, 1, "row_factor");
  expect_matrix(col_factor, p.dtype, 1, p.cols, "col_factor");
  if (p.size() == 0) return;
  Adafactor o = operands(p, g, {}, row_factor, col_factor, step);
  DeviceScratch scratch(context);
  o.s = take_statistics(scratch, p.rows, p.cols, true);
  const dim3 grid = tile_grid(p);
  launch(factor_sums, grid, kThreads, sizeof(double) * kWarps * kTileRows + kRoom, context, o);
  launch(blend_factors, striding_blocks(p.rows + p.cols, kThreads), kThreads, 0, context, o);
  launch(mean_of_rows, 1, kThreads, kRoom, context, o);
  launch(factored_sums, grid, kThreads, kRoom, context, o);
  launch(clip_update, 1, kThreads, kRoom, context, o, std::int64_t(grid.x) * grid.y);
  launch(apply_update<true>, grid, kThreads, 0, context, o);
}

void adafactor_full(KernelContext& context, const Tensor& p, const Tensor& v, const Tensor& g,
                    const AdafactorStep& step) {
  expect_like(g, p, "g");
  expect_like(v, p, "v");
  if (p.size() == 0) return;
  Adafactor o = operands(p, g, v, {}, {}, step);
  DeviceScratch scratch(context);
  o.s = take_statistics(scratch, p.rows, p.cols, false);
  const dim3 grid = tile_grid(p);
  launch(full_sums, grid, kThreads, kRoom, context, o);
  launch(clip_update, 1, kThreads, kRoom, context, o, std::int64_t(grid.x) * grid.y);
  launch(apply_update<false>, grid, kThreads, 0, context, o);
}

// ---- balance and sums ----------------------------------------------------------------------------------------------

/// One block. Whole numbers: the order of the sum does not matter.
__global__ void __launch_bounds__(kThreads)
    balance_kernel(float* b, const float* count, std::int64_t experts, float rate) {
  double sum = 0;
  for (std::int64_t e = threadIdx.x; e < experts; e += kThreads) sum += double(count[e]);
  sum = block_reduce(sum, shared_memory<double>());
  for (std::int64_t e = threadIdx.x; e < experts; e += kThreads) {
    const double more = double(count[e]) * double(experts) - sum;
    if (more != 0) b[e] += more > 0 ? -rate : rate;
  }
}

void balance(KernelContext& context, const Tensor& b, const Tensor& count, double rate) {
  expect_matrix(b, b.dtype, 1, count.cols, "b");
  expect_like(count, b, "count");
  launch(balance_kernel, 1, kThreads, kRoom, context, b.as<float>(), count.as<float>(), b.cols, float(rate));
}

constexpr std::int64_t kLeaf = 4096;  // elements that one block sums

template <class C>
__global__ void __launch_bounds__(kThreads) sum_leaves(double* out, const C* x, std::int64_t n, bool wide) {
  const std::int64_t first = std::int64_t(blockIdx.x) * kLeaf, end = std::min(n, first + kLeaf);
  double sum = 0;
  for (std::int64_t i = first + std::int64_t(threadIdx.x) * 8; i < end; i += kThreads * 8) {
    if (wide && i + 8 <= end) {
      float v[8];
      load_floats(v, x + i);
#pragma unroll
      for (int j = 0; j < 8; ++j) sum += double(v[j]) * double(v[j]);
    } else {
      for (std::int64_t j = i; j < std::min(i + 8, end); ++j) {
        sum += double(load_as_float(x[j])) * double(load_as_float(x[j]));
      }
    }
  }
  sum = block_reduce(sum, shared_memory<double>());
  if (threadIdx.x == 0) out[blockIdx.x] = sum;
}

/// Every block sums 2 * kThreads neighbours by pairs; what is missing at the end counts as 0.
__global__ void __launch_bounds__(kThreads) sum_pairs(double* out, const double* in, std::int64_t n) {
  double* s = shared_memory<double>();
  const std::int64_t first = std::int64_t(blockIdx.x) * 2 * kThreads;
  for (int i = int(threadIdx.x); i < 2 * kThreads; i += kThreads) s[i] = first + i < n ? in[first + i] : 0;
  __syncthreads();
  for (int count = kThreads; count > 0; count /= 2) {
    double sum = 0;
    if (int(threadIdx.x) < count) sum = s[2 * threadIdx.x] + s[2 * threadIdx.x + 1];
    __syncthreads();
    if (int(threadIdx.x) < count) s[threadIdx.x] = sum;
    __syncthreads();
  }
  if (threadIdx.x == 0) out[blockIdx.x] = s[0];
}

std::int64_t sum_scratch(std::int64_t n) {
  const std::int64_t leaves = tiles_of(n, kLeaf);
  return leaves + tiles_of(leaves, 2 * kThreads);
}

double sum_of_squares(KernelContext& context, const Tensor& x) {
  double sum = 0;
  if (x.size() == 0) return sum;
  with_type<float, bf16>(x, "x", [&]<class C>(std::type_identity<C>) {
    const auto flat = x.flat<C>();
    const std::int64_t n = std::int64_t(flat.size());
    std::int64_t left = tiles_of(n, kLeaf);
    DeviceScratch scratch(context);
    double* in = scratch.take<double>(sum_scratch(n));
    double* out = in + left;
    launch(sum_leaves<C>, blocks_for(n, kLeaf), kThreads, kRoom, context, in, flat.data(), n,
           reinterpret_cast<std::uintptr_t>(flat.data()) % 16 == 0);
    while (left > 1) {
      launch(sum_pairs, blocks_for(left, 2 * kThreads), kThreads, 2 * kThreads * sizeof(double), context, out, in,
             left);
      left = tiles_of(left, 2 * kThreads);
      std::swap(in, out);
    }
    download(context, &sum, in, 1);
  });
  return sum;
}

std::size_t scratch_bytes(std::int64_t rows, std::int64_t cols) {
  const std::int64_t row_tiles = tiles_of(rows, kTileRows), col_tiles = tiles_of(cols, kTileCols);
  const std::size_t update = scratch_size<double>(col_tiles * rows) + scratch_size<double>(row_tiles * cols) +
                             2 * scratch_size<double>(row_tiles * col_tiles) + scratch_size<double>(2);
  return std::max(update, scratch_size<double>(sum_scratch(rows * cols)));
}

}  // namespace

const OptimizerKernels optimizer_kernels = {adamw,   adafactor_factored, adafactor_full,
                                            balance, sum_of_squares,     scratch_bytes};

}  // namespace flanmoe::cuda
