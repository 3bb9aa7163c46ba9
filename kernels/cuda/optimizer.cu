// AdamW, sums of squares and working weights, on lists of matrices; Adafactor is in adafactor.cu.
#include <algorithm>
#include <cmath>

#include "kernels/cuda/adafactor.hpp"
#include "kernels/cuda/elements.cuh"
#include "kernels/cuda/matrix_list.cuh"
#include "kernels/cuda/philox.cuh"
#include "kernels/optimizer_checks.hpp"

namespace flanmoe::cuda {
namespace {

/// Pieces of a matrix, of eight elements where all operands allow accesses of 16 bytes, else of one. Operands without
/// gaps between their rows are one row.
struct Pieces {
  std::int64_t count, per_row;
  bool wide;

  Pieces(std::initializer_list<Tensor> operands, bool aligned = true) {
    std::int64_t rows = operands.begin()->rows, cols = operands.begin()->cols;
    bool flat = true;
    for (const Tensor& x : operands) flat = flat && x.contiguous();
    if (flat) cols *= std::exchange(rows, 1);
    wide = aligned && cols % 8 == 0;
    for (const Tensor& x : operands) {
      wide = wide && reinterpret_cast<std::uintptr_t>(x.data) % 16 == 0 && (flat || x.stride % 8 == 0);
    }
    per_row = std::max<std::int64_t>(wide ? cols / 8 : cols, 1);
    count = cols == 0 ? 0 : rows * per_row;
  }
  __device__ std::int64_t row(std::int64_t piece) const { return per_row == count ? 0 : piece / per_row; }
};

constexpr int kPiecesPerThread = 4, kPiecesPerBlock = kPiecesPerThread * kThreads;

/// f(piece) for the pieces of this thread.
template <class F>
__device__ inline void for_pieces_of(std::int64_t block, const Pieces& pieces, F f) {
#pragma unroll 1
  for (int k = 0; k < kPiecesPerThread; ++k) {
    const std::int64_t piece = block * kPiecesPerBlock + k * kThreads + threadIdx.x;
    if (piece < pieces.count) f(piece);
  }
}

/// One launch for each part of a list: make(item) is what a kernel gets of an item, with its `pieces`.
template <class T, class Make, class Kernel, class... Args>
void launch_list(KernelContext& context, std::span<const T> list, Make&& make, Kernel kernel, const Args&... args) {
  for_parts(
      list, [](const T&) { return std::size_t{0}; },
      [&](std::span<const T> part) {
        std::vector<std::remove_cvref_t<decltype(make(list[0]))>> items;
        BlockCount blocks;
        for (const T& item : part) blocks.add(tiles_of(items.emplace_back(make(item)).pieces.count, kPiecesPerBlock));
        launch(kernel, blocks.total(), kThreads, 0, context, upload(context, std::span(items)), blocks.upload(context),
               args...);
      });
}

// ---- AdamW --------------------------------------------------------------------------------------------------------

struct AdamWItem {
  Elements<float> p, m, v;
  Elements<const float> g;
  Pieces pieces;
  bool decays;
};
struct AdamWFactors {
  float scale, beta1, rest1, beta2, rest2, bias1, bias2, epsilon, rate, decay;
};

template <int width>
__device__ inline void update_piece(const AdamWItem& o, const AdamWFactors& f, std::int64_t piece) {
  const std::int64_t row = o.pieces.row(piece), col = (piece - row * o.pieces.per_row) * width;
  const float decay = o.decays ? f.decay : 0;
  float weight[width], mean[width], square[width], gradient[width];
  load_floats(weight, o.p.at(row, col));
  load_floats(mean, o.m.at(row, col));
  load_floats(square, o.v.at(row, col));
  load_floats(gradient, o.g.at(row, col));
#pragma unroll
  for (int i = 0; i < width; ++i) {
    const float x = gradient[i] * f.scale;
    mean[i] = f.beta1 * mean[i] + f.rest1 * x;
    square[i] = f.beta2 * square[i] + f.rest2 * x * x;
    weight[i] -= f.rate * (mean[i] / f.bias1 / (sqrtf(square[i] / f.bias2) + f.epsilon) + decay * weight[i]);
  }
  store_floats(o.m.at(row, col), mean);
  store_floats(o.v.at(row, col), square);
  store_floats(o.p.at(row, col), weight);
}

__global__ void __launch_bounds__(kThreads) adamw_list(const AdamWItem* list, BlockMap map, AdamWFactors f) {
  const BlockPlace place = map.place();
  const AdamWItem o = list[place.matrix];
  for_pieces_of(place.block, o.pieces, [&](std::int64_t piece) {
    if (o.pieces.wide) {
      update_piece<8>(o, f, piece);
    } else {
      update_piece<1>(o, f, piece);
    }
  });
}

void adamw(KernelContext& context, std::span<const AdamWMatrix> matrices, const AdamWStep& step) {
  for (const AdamWMatrix& matrix : matrices) expect_operands(matrix);
  const AdamWFactors factors{float(step.gradient_scale),
                             float(step.beta1),
                             float(1 - step.beta1),
                             float(step.beta2),
                             float(1 - step.beta2),
                             float(1 - std::pow(step.beta1, double(step.step + 1))),
                             float(1 - std::pow(step.beta2, double(step.step + 1))),
                             float(step.epsilon),
                             float(step.learning_rate),
                             float(step.weight_decay)};
  launch_list(
      context, matrices,
      [](const AdamWMatrix& x) {
        return AdamWItem{elements<float>(x.p),       elements<float>(x.m),   elements<float>(x.v),
                         elements<const float>(x.g), {{x.p, x.m, x.v, x.g}}, x.decays};
      },
      adamw_list, factors);
}

// ---- working weights --------------------------------------------------------------------------------------------

struct WeightItem {
  Elements<float> to_f32;
  Elements<bf16> to_bf16;
  Elements<const float> from;
  Pieces pieces;
  std::int64_t cols, first;
  std::uint64_t parameter;
  std::uint32_t expert;
  bool random;
};

/// x with `bits` added below what bf16 holds: cut off there it is rounded at random. NaN is rounded as ever.
__device__ inline bf16 round_at_random(float x, std::uint32_t bits) {
  bf16 y = round_to<bf16>(x);
  if (x == x) y.bits = std::uint16_t((__float_as_uint(x) + (bits & 0xffffU)) >> 16U);
  return y;
}

template <int width>
__device__ inline void write_piece(const WeightItem& o, PhiloxKey key, std::int64_t piece) {
  const std::int64_t row = o.pieces.row(piece), col = (piece - row * o.pieces.per_row) * width;
  float x[width];
  load_floats(x, o.from.at(row, col));
  if (o.to_f32.data != nullptr) {
    store_floats(o.to_f32.at(row, col), x);
    return;
  }
  if (!o.random) {
    store_floats(o.to_bf16.at(row, col), x);
    return;
  }
  const std::int64_t element = o.first + row * o.cols + col;
  std::uint32_t words[4];
  philox_block(words, key, o.parameter, o.expert, std::uint32_t(element / 8));
  if constexpr (width == 1) {
    const int half = int(element % 8);
    const std::uint32_t word = half < 2 ? words[0] : half < 4 ? words[1] : half < 6 ? words[2] : words[3];
    *o.to_bf16.at(row, col) = round_at_random(x[0], half % 2 == 0 ? word : word >> 16U);
  } else {
    Pack<bf16> pack;
#pragma unroll
    for (int i = 0; i < width; ++i) pack.value[i] = round_at_random(x[i], words[i / 2] >> (i % 2 * 16));
    store_pack(o.to_bf16.at(row, col), pack);
  }
}

__global__ void __launch_bounds__(kThreads) weight_list(const WeightItem* list, BlockMap map, PhiloxKey key) {
  const BlockPlace place = map.place();
  const WeightItem o = list[place.matrix];
  for_pieces_of(place.block, o.pieces, [&](std::int64_t piece) {
    if (o.pieces.wide) {
      write_piece<8>(o, key, piece);
    } else {
      write_piece<1>(o, key, piece);
    }
  });
}

void write_weights(KernelContext& context, std::span<const WeightCopy> copies, const RandomKey* rounding) {
  launch_list(
      context, copies,
      [&](const WeightCopy& x) {
        const bool random = rounds_at_random(x, rounding), narrow = x.to.dtype == DType::bf16;
        return WeightItem{narrow ? Elements<float>{} : elements<float>(x.to),
                          narrow ? elements<bf16>(x.to) : Elements<bf16>{},
                          elements<const float>(x.from),
                          {{x.to, x.from}, x.first % 8 == 0},
                          x.to.cols,
                          x.first,
                          x.parameter,
                          x.expert,
                          random};
      },
      weight_list, PhiloxKey(rounding == nullptr ? RandomKey{} : *rounding));
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
  launch(balance_kernel, 1, kThreads, block_reduce_bytes<double>(kThreads), context, b.as<float>(), count.as<float>(),
         b.cols, float(rate));
}

constexpr std::int64_t kLeaf = 4096;  // elements that one block sums

struct SumItem {
  const void* x;
  std::int64_t count;
  double* leaves;  // of the tree: a number a leaf, then room for the levels above
  bool narrow, wide;
};

template <class C>
__device__ inline double leaf_sum(const C* x, std::int64_t first, std::int64_t end, bool wide) {
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
  return sum;
}

/// A block a leaf.
__global__ void __launch_bounds__(kThreads) sum_leaves(const SumItem* list, BlockMap map) {
  const BlockPlace place = map.place();
  const SumItem o = list[place.matrix];
  const std::int64_t first = place.block * kLeaf, end = std::min(o.count, first + kLeaf);
  double sum = o.narrow ? leaf_sum(static_cast<const bf16*>(o.x), first, end, o.wide)
                        : leaf_sum(static_cast<const float*>(o.x), first, end, o.wide);
  sum = block_reduce(sum, shared_memory<double>());
  if (threadIdx.x == 0) o.leaves[place.block] = sum;
}

constexpr std::int64_t kPairs = 2 * kThreads;  // neighbours that a block sums in nine levels of the tree

/// Sums kPairs neighbours by pairs; what is missing at the end counts as 0. Thread 0 gets the sum.
__device__ inline double sum_pairs(double* s, const double* in, std::int64_t n) {
  for (int i = int(threadIdx.x); i < int(kPairs); i += kThreads) s[i] = i < n ? in[i] : 0;
  __syncthreads();
  for (int count = kThreads; count > 0; count /= 2) {
    double sum = 0;
    if (int(threadIdx.x) < count) sum = s[2 * threadIdx.x] + s[2 * threadIdx.x + 1];
    __syncthreads();
    if (int(threadIdx.x) < count) s[threadIdx.x] = sum;
    __syncthreads();
  }
  return s[0];
}

/// A block a matrix: the tree above its leaves, level by level.
__global__ void __launch_bounds__(kThreads) sum_trees(double* out, const SumItem* list) {
  const SumItem o = list[blockIdx.x];
  double *s = shared_memory<double>(), *in = o.leaves;
  std::int64_t left = tiles_of(o.count, kLeaf);
  while (left > 1) {
    double* next = in + left;
    const std::int64_t sums = tiles_of(left, kPairs);
    for (std::int64_t i = 0; i < sums; ++i) {
      const double sum = sum_pairs(s, in + i * kPairs, left - i * kPairs);
      if (threadIdx.x == 0) next[i] = sum;
      __syncthreads();
    }
    in = next;
    left = sums;
  }
  if (threadIdx.x == 0) out[blockIdx.x] = o.count == 0 ? 0 : in[0];
}

/// Numbers of the leaves and of all levels above.
std::int64_t tree_size(std::int64_t n) {
  std::int64_t level = tiles_of(n, kLeaf), all = level;
  while (level > 1) all += level = tiles_of(level, kPairs);
  return all;
}

void sum_part(KernelContext& context, std::span<double> sums, std::span<const Tensor> x) {
  DeviceScratch scratch(context);
  std::vector<SumItem> items;
  BlockCount leaves;
  for (const Tensor& t : x) {
    FLANMOE_EXPECT(t.contiguous() && (t.dtype == DType::f32 || t.dtype == DType::bf16), "a sum over {}, stride {}",
                   name_of(t.dtype), t.stride);
    items.push_back({t.data, t.size(), scratch.take<double>(tree_size(t.size())), t.dtype == DType::bf16,
                     reinterpret_cast<std::uintptr_t>(t.data) % 16 == 0});
    leaves.add(tiles_of(t.size(), kLeaf));
  }
  double* out = scratch.take<double>(std::int64_t(x.size()));
  const SumItem* list = upload(context, std::span(items));
  launch(sum_leaves, leaves.total(), kThreads, block_reduce_bytes<double>(kThreads), context, list,
         leaves.upload(context));
  launch(sum_trees, unsigned(x.size()), kThreads, sizeof(double) * kPairs, context, out, list);
  download(context, sums.data(), out, std::int64_t(x.size()));
}

std::size_t sum_scratch(std::int64_t n) { return scratch_size<double>(tree_size(n)); }

void sums_of_squares(KernelContext& context, std::span<double> sums, std::span<const Tensor> x) {
  FLANMOE_EXPECT(sums.size() == x.size(), "{} sums of {} tensors", sums.size(), x.size());
  for_parts(
      x, [](const Tensor& t) { return sum_scratch(t.size()); },
      [&](std::span<const Tensor> part) {
        sum_part(context, sums.subspan(std::size_t(part.data() - x.data()), part.size()), part);
      });
}

std::size_t scratch_bytes(std::int64_t rows, std::int64_t cols) {
  const std::size_t sums =
      scratch_size<double>(std::int64_t(kMostMatrices)) + std::max(kListScratch, sum_scratch(rows * cols));
  return std::max({sums, kListScratch, adafactor_scratch(rows, cols)});
}

}  // namespace

const OptimizerKernels optimizer_kernels = {adamw, adafactor, balance, sums_of_squares, write_weights, scratch_bytes};

}  // namespace flanmoe::cuda
