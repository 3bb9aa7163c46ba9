// Adafactor of matrices in blocks of rows. Sums are fp64: of tiles of a block, in a fixed order, then of the tiles.
#include <algorithm>

#include "kernels/adafactor_block_checks.hpp"
#include "kernels/cuda/elements.cuh"

namespace flanmoe::cuda {
namespace {

/// A block of threads passes down a tile, each thread on some columns of it.
constexpr int kColumns = 4, kTileCols = kColumns * kThreads, kWarps = kThreads / kWarp;
constexpr int kChunk = 64;  // rows whose sums wait in shared memory
constexpr std::size_t kRoom = block_reduce_bytes<double>(kThreads);

struct Piece {
  Elements<const float> g;
  Elements<float> row_factor;
  float* col_factor;
  const double* totals;
  std::int64_t rows, cols, block_rows;
  double matrix_rows;
  float scale;
  double decay, epsilon1;
};

Piece piece_of(const Tensor& g, const Tensor& row_factor, float* col_factor, const double* totals, const BlockCut& cut,
               const AdafactorStep& step) {
  return {
      elements<const float>(g), elements<float>(row_factor), col_factor, totals,       g.rows, g.cols, cut.block_rows,
      double(cut.rows),         float(step.gradient_scale),  step.decay, step.epsilon1};
}

__host__ __device__ inline std::int64_t tiles_of(std::int64_t cols) { return (cols + kTileCols - 1) / kTileCols; }
__device__ inline std::int64_t column_of(int i) {
  return std::int64_t(blockIdx.x) * kTileCols + i * kThreads + int(threadIdx.x);
}
__device__ inline std::int64_t end_of_block(const Piece& o) {
  return std::min((std::int64_t(blockIdx.y) + 1) * o.block_rows, o.rows);
}

/// A tile of a block: sums of g^2 + epsilon1 of its columns and (row_part: tiles x rows) its rows, and (weight: blocks
/// x tiles) of p^2.
__global__ void __launch_bounds__(kThreads)
    tile_sums(Piece o, Elements<const float> p, double* sums, double* row_part, double* weight) {
  double* of_row = shared_memory<double>();  // warps x rows of a chunk
  double* room = shared_memory<double>(sizeof(double) * kWarps * kChunk);
  const int warp = int(threadIdx.x) / kWarp, lane = int(threadIdx.x) % kWarp;
  const std::int64_t end = end_of_block(o);
  double col_sum[kColumns] = {0, 0, 0, 0}, weight_sum = 0;
  for (std::int64_t first = std::int64_t(blockIdx.y) * o.block_rows; first < end; first += kChunk) {
    const int count = int(std::min<std::int64_t>(kChunk, end - first));
    for (int r = 0; r < count; ++r) {
      double row_sum = 0;
#pragma unroll
      for (int i = 0; i < kColumns; ++i) {
        const std::int64_t col = column_of(i);
        if (col >= o.cols) continue;
        const auto x = double(*o.g.at(first + r, col) * o.scale), w = double(*p.at(first + r, col));
        row_sum += x * x + o.epsilon1;
        col_sum[i] += x * x + o.epsilon1;
        weight_sum += w * w;
      }
      row_sum = warp_reduce(row_sum);
      if (lane == 0) of_row[warp * kChunk + r] = row_sum;
    }
    __syncthreads();
    for (int r = int(threadIdx.x); r < count; r += kThreads) {
      double sum = 0;
      for (int w = 0; w < kWarps; ++w) sum += of_row[w * kChunk + r];
      row_part[blockIdx.x * o.rows + first + r] = sum;
    }
    __syncthreads();
  }
#pragma unroll
  for (int i = 0; i < kColumns; ++i) {
    if (column_of(i) < o.cols) sums[blockIdx.y * (o.cols + 2) + column_of(i)] = col_sum[i];
  }
  weight_sum = block_reduce(weight_sum, room);
  if (threadIdx.x == 0) weight[std::int64_t(blockIdx.y) * gridDim.x + blockIdx.x] = weight_sum;
}

/// One block of threads for a block of rows: their new factors, and the sums of those and of p^2.
__global__ void __launch_bounds__(kThreads)
    blend_rows(Piece o, double* sums, const double* row_part, const double* weight) {
  const std::int64_t first = std::int64_t(blockIdx.y) * o.block_rows, tiles = tiles_of(o.cols);
  double factors = 0;
  for (std::int64_t r = first + threadIdx.x; r < end_of_block(o); r += kThreads) {
    double sum = 0;
    for (std::int64_t t = 0; t < tiles; ++t) sum += row_part[t * o.rows + r];
    float* factor = o.row_factor.at(r, 0);
    *factor = float(o.decay * double(*factor) + (1 - o.decay) * (sum / double(o.cols)));
    factors += double(*factor);
  }
  factors = block_reduce(factors, shared_memory<double>());
  if (threadIdx.x != 0) return;
  double weight_sum = 0;
  for (std::int64_t t = 0; t < tiles; ++t) weight_sum += weight[blockIdx.y * tiles + t];
  double* of_block = sums + blockIdx.y * (o.cols + 2) + o.cols;
  of_block[0] = factors;
  of_block[1] = weight_sum;
}

__global__ void __launch_bounds__(kThreads) blend_columns(Piece o) {
  const std::int64_t step = std::int64_t(gridDim.x) * kThreads;
  for (std::int64_t j = std::int64_t(blockIdx.x) * kThreads + threadIdx.x; j < o.cols; j += step) {
    const double mean = o.totals[j] / o.matrix_rows;
    o.col_factor[j] = float(o.decay * double(o.col_factor[j]) + (1 - o.decay) * mean);
  }
}

/// u of a row in the columns of this thread, before clipping; zero past the last one.
__device__ inline void load_update(float (&u)[kColumns], const Piece& o, std::int64_t row,
                                   const float (&col_part)[kColumns]) {
  const double row_mean = o.totals[o.cols] / o.matrix_rows;
  const auto row_part = float(1 / sqrt(double(*o.row_factor.at(row, 0)) / row_mean));
#pragma unroll
  for (int i = 0; i < kColumns; ++i) {
    u[i] = column_of(i) < o.cols ? *o.g.at(row, column_of(i)) * o.scale * row_part * col_part[i] : 0;
  }
}
__device__ inline void load_column_parts(float (&part)[kColumns], const Piece& o) {
#pragma unroll
  for (int i = 0; i < kColumns; ++i) {
    part[i] = column_of(i) < o.cols ? float(1 / sqrt(double(o.col_factor[column_of(i)]))) : 0;
  }
}

/// Sum of u^2 of a tile of a block (blocks x tiles).
__global__ void __launch_bounds__(kThreads) tile_update_sums(Piece o, double* tile_sum) {
  float col_part[kColumns], u[kColumns];
  load_column_parts(col_part, o);
  double sum = 0;
  for (std::int64_t r = std::int64_t(blockIdx.y) * o.block_rows; r < end_of_block(o); ++r) {
    load_update(u, o, r, col_part);
#pragma unroll
    for (int i = 0; i < kColumns; ++i) sum += double(u[i]) * double(u[i]);
  }
  sum = block_reduce(sum, shared_memory<double>());
  if (threadIdx.x == 0) tile_sum[std::int64_t(blockIdx.y) * gridDim.x + blockIdx.x] = sum;
}

/// totals (copies x cols) = the sum of the rows of sums, in their order.
__global__ void __launch_bounds__(kThreads)
    add_rows(double* totals, std::int64_t copies, const double* sums, std::int64_t rows, std::int64_t cols) {
  const std::int64_t step = std::int64_t(gridDim.x) * kThreads;
  for (std::int64_t j = std::int64_t(blockIdx.x) * kThreads + threadIdx.x; j < cols; j += step) {
    double sum = 0;
    for (std::int64_t r = 0; r < rows; ++r) sum += sums[r * cols + j];
    for (std::int64_t t = 0; t < copies; ++t) totals[t * cols + j] = sum;
  }
}

/// sums[b] = the sum of the tiles of block b.
__global__ void __launch_bounds__(kThreads)
    add_tiles(double* sums, const double* tile_sum, std::int64_t blocks, std::int64_t tiles) {
  for (std::int64_t b = threadIdx.x; b < blocks; b += kThreads) {
    double sum = 0;
    for (std::int64_t t = 0; t < tiles; ++t) sum += tile_sum[b * tiles + t];
    sums[b] = sum;
  }
}

struct Application {
  Elements<float> p;
  const double* update_total;
  double epsilon2, learning_rate, clip;
  bool by_parameter;
  float weight_decay;
};

__global__ void __launch_bounds__(kThreads) apply_update(Piece o, Application a) {
  const double size = o.matrix_rows * double(o.cols);
  const double rms_u = sqrt(a.update_total[0] / size), rms_p = sqrt(o.totals[o.cols + 1] / size);
  const double alpha = a.learning_rate * (a.by_parameter ? fmax(rms_p, a.epsilon2) : 1.0);
  const auto factor = float(alpha / fmax(1.0, rms_u / a.clip));
  float col_part[kColumns], u[kColumns];
  load_column_parts(col_part, o);
  const std::int64_t first = std::int64_t(blockIdx.y) * kChunk;
  for (std::int64_t r = first; r < std::min<std::int64_t>(first + kChunk, o.rows); ++r) {
    load_update(u, o, r, col_part);
#pragma unroll
    for (int i = 0; i < kColumns; ++i) {
      if (column_of(i) >= o.cols) continue;
      float* p = a.p.at(r, column_of(i));
      *p -= factor * u[i] + a.weight_decay * *p;
    }
  }
}

void sums(KernelContext& context, const Tensor& sums, const Tensor& row_factor, const Tensor& p, const Tensor& g,
          const BlockCut& cut, const AdafactorStep& step) {
  expect_sums_operands(sums, row_factor, p, g, cut);
  if (p.size() == 0) return;
  const Piece o = piece_of(g, row_factor, nullptr, nullptr, cut, step);
  const std::int64_t tiles = tiles_of(p.cols);
  DeviceScratch scratch(context);
  auto* row_part = scratch.take<double>(tiles * p.rows);
  auto* weight = scratch.take<double>(tiles * sums.rows);
  launch(tile_sums, dim3(unsigned(tiles), unsigned(sums.rows)), kThreads, sizeof(double) * kWarps * kChunk + kRoom,
         context, o, elements<const float>(p), sums.as<double>(), row_part, weight);
  launch(blend_rows, dim3(1, unsigned(sums.rows)), kThreads, kRoom, context, o, sums.as<double>(), row_part, weight);
}

void update_sums(KernelContext& context, const Tensor& sums, const Tensor& row_factor, const Tensor& col_factor,
                 const Tensor& g, const Tensor& totals, const BlockCut& cut, const AdafactorStep& step) {
  expect_update_operands(row_factor, col_factor, g, totals, cut);
  expect_sums(sums, cut.blocks(g.rows), 1, "sums");
  if (g.size() == 0) return;
  const Piece o = piece_of(g, row_factor, col_factor.as<float>(), totals.as<double>(), cut, step);
  const std::int64_t tiles = tiles_of(g.cols);
  DeviceScratch scratch(context);
  auto* tile_sum = scratch.take<double>(tiles * sums.rows);
  launch(blend_columns, striding_blocks(g.cols, kThreads), kThreads, 0, context, o);
  launch(tile_update_sums, dim3(unsigned(tiles), unsigned(sums.rows)), kThreads, kRoom, context, o, tile_sum);
  launch(add_tiles, 1, kThreads, 0, context, sums.as<double>(), tile_sum, sums.rows, tiles);
}

void apply(KernelContext& context, const Tensor& p, const Tensor& row_factor, const Tensor& col_factor, const Tensor& g,
           const Tensor& totals, const Tensor& update_total, const BlockCut& cut, const AdafactorStep& step) {
  expect_update_operands(row_factor, col_factor, g, totals, cut);
  expect_like(p, g, "p");
  expect_sums(update_total, 1, 1, "update_total");
  if (p.size() == 0) return;
  const Piece o = piece_of(g, row_factor, col_factor.as<float>(), totals.as<double>(), cut, step);
  const Application a = {elements<float>(p),
                         update_total.as<double>(),
                         step.epsilon2,
                         step.learning_rate,
                         step.clip_threshold,
                         step.multiply_by_parameter_scale,
                         float(step.learning_rate * step.weight_decay)};
  launch(apply_update, dim3(unsigned(tiles_of(p.cols)), blocks_for(p.rows, kChunk)), kThreads, 0, context, o, a);
}

void add(KernelContext& context, const Tensor& totals, const Tensor& sums) {
  expect_totals(totals, sums);
  launch(add_rows, striding_blocks(sums.cols, kThreads), kThreads, 0, context, totals.as<double>(), totals.rows,
         sums.as<double>(), sums.rows, sums.cols);
}

std::size_t scratch_bytes(std::int64_t rows, std::int64_t cols) {
  return 2 * scratch_size<double>(tiles_of(cols) * rows);  // there are not more blocks than rows
}

}  // namespace

const AdafactorBlockKernels adafactor_block_kernels = {sums, update_sums, apply, add, scratch_bytes};

}  // namespace flanmoe::cuda
