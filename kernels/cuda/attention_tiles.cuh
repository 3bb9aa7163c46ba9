// What the kernels of attention share: tiles of rows in shared memory, their products, and what a query sees.
//
// A block of eight warps works on a tile of side() queries and side() keys of one head. Warps stand in a grid over the
// tile: each owns 16 rows, and the columns of a tile or of a head are shared out among the warps of the same rows. In
// bf16 they multiply on tensor cores; fp32 has no such path and no such need, and sums with plain operations, in the
// same places of the same registers.
#pragma once

#include <algorithm>
#include <limits>
#include <vector>

#include "kernels/attention.hpp"
#include "kernels/cuda/elements.cuh"

namespace flanmoe::cuda {

template <class C>
struct Tile {
  static constexpr int side = std::is_same_v<C, bf16> ? 64 : 32;  // queries and keys
  static constexpr int pad = 16 / int(sizeof(C));                 // columns: rows begin in different banks
  static constexpr int row_groups = side / 16, column_groups = kThreads / kWarp / row_groups;
  static constexpr int score_tiles = side / 8 / column_groups;  // of 16 x 8 scores, a warp
  static constexpr int score_stride = side + pad;
  static constexpr int threads_per_row = kThreads / side;
};
/// Places of 16 x 8 in a head of `width` columns, a warp.
template <class C, int width>
inline constexpr int kHeadTiles = width / 8 / Tile<C>::column_groups;
template <class C, int width>
inline constexpr int kStride = width + Tile<C>::pad;

/// One side x (all keys or all queries) stripe of one segment; `tile` numbers the stripes of a segment.
struct AttentionTask {
  std::int32_t q0, queries, k0, keys, prefix, tile;
};
/// Tasks are kernel parameters: nothing is copied to the device and nothing waits.
constexpr int kMostTasks = 128;
/// With a bias gradient a task has a buffer for every head.
constexpr int kMostBiasTasks = 32;
struct AttentionTasks {
  AttentionTask task[kMostTasks];
};

template <class C>
struct AttentionOperands {
  Elements<const C> q, k, v, out_saved, dout;
  Elements<C> out, dq, dk, dv;
  Elements<float> logsumexp, dbias;
  Elements<const float> bias;
  float* partial;  // tasks x heads x partial_length: bias gradients by i0 + d
  std::int64_t partial_length, bias_cols;
  int heads, head_dim, sharing;
  bool causal, wide;
  float scale;
};

/// Keys that query i sees: the first so many of its segment.
template <class C>
__device__ inline int visible_keys(const AttentionOperands<C>& o, const AttentionTask& task, int i) {
  const int own = task.keys - task.queries + i + 1;
  return o.causal ? std::max(std::min(own, task.keys), task.prefix) : task.keys;
}

/// Copies `rows` rows of one head to a side x width tile; zero where there are no rows or columns.
template <int width, class C>
__device__ inline void load_tile(C* tile, const C* from, std::int64_t stride, int rows, const AttentionOperands<C>& o) {
  constexpr int per = Pack<C>::size, pieces = width / per;
  for (int p = int(threadIdx.x); p < Tile<C>::side * pieces; p += kThreads) {
    const int row = p / pieces, col = p % pieces * per;
    C* to = tile + row * kStride<C, width> + col;
    if (o.wide && row < rows && col < o.head_dim) {
      store_pack(to, load_pack(from + row * stride + col));
      continue;
    }
#pragma unroll
    for (int i = 0; i < per; ++i) {
      const bool there = row < rows && col + i < o.head_dim;
      to[i] = there ? from[row * stride + col + i] : round_to<C>(0.0F);
    }
  }
}
template <int width, class C>
__device__ inline void store_tile(C* to, std::int64_t stride, const C* tile, int rows, const AttentionOperands<C>& o) {
  constexpr int per = Pack<C>::size, pieces = width / per;
  for (int p = int(threadIdx.x); p < rows * pieces; p += kThreads) {
    const int row = p / pieces, col = p % pieces * per;
    const C* from = tile + row * kStride<C, width> + col;
    if (o.wide) {
      if (col < o.head_dim) store_pack(to + row * stride + col, load_pack(from));
      continue;
    }
    for (int i = 0; i < per && col + i < o.head_dim; ++i) to[row * stride + col + i] = from[i];
  }
}

__device__ inline std::uint32_t two_at(const bf16* at) { return *reinterpret_cast<const std::uint32_t*>(at); }
__device__ inline std::uint32_t two_of(bf16 low, bf16 high) { return low.bits | std::uint32_t{high.bits} << 16U; }

/// c += a . b: 16 rows of a, `tiles` times 8 columns of b. a: depth is contiguous. b: with depth contiguous (by_depth,
/// a row for each column of the product), or with columns contiguous.
template <bool by_depth, int tiles>
__device__ inline void multiply_tiles(float (&c)[tiles][4], const bf16* a, int a_stride, const bf16* b, int b_stride,
                                      int depth) {
  const int group = int(threadIdx.x) % kWarp / 4, two = int(threadIdx.x) % 4 * 2;
  for (int k = 0; k < depth; k += 16) {
    const bf16* at = a + group * a_stride + k + two;
    const std::uint32_t a_part[4] = {two_at(at), two_at(at + 8 * a_stride), two_at(at + 8),
                                     two_at(at + 8 * a_stride + 8)};
#pragma unroll
    for (int n = 0; n < tiles; ++n) {
      std::uint32_t b_part[2];
      if constexpr (by_depth) {
        const bf16* bt = b + (n * 8 + group) * b_stride + k + two;
        b_part[0] = two_at(bt);
        b_part[1] = two_at(bt + 8);
      } else {
        const bf16* bt = b + (k + two) * b_stride + n * 8 + group;
        b_part[0] = two_of(bt[0], bt[b_stride]);
        b_part[1] = two_of(bt[8 * b_stride], bt[9 * b_stride]);
      }
      mma_16x8x16(c[n], a_part, b_part);
    }
  }
}
template <bool by_depth, int tiles>
__device__ inline void multiply_tiles(float (&c)[tiles][4], const float* a, int a_stride, const float* b, int b_stride,
                                      int depth) {
  const int group = int(threadIdx.x) % kWarp / 4, two = int(threadIdx.x) % 4 * 2;
  const int across = by_depth ? b_stride : 1, down = by_depth ? 1 : b_stride;
  for (int k = 0; k < depth; ++k) {
    const float upper = a[group * a_stride + k], lower = a[(group + 8) * a_stride + k];
#pragma unroll
    for (int n = 0; n < tiles; ++n) {
      const float* bt = b + (n * 8 + two) * across + k * down;
      const float left = bt[0], right = bt[across];
      c[n][0] += upper * left;
      c[n][1] += upper * right;
      c[n][2] += lower * left;
      c[n][3] += lower * right;
    }
  }
}

/// First row and first of `tiles` * 8 columns of this warp.
template <class C>
__device__ inline int warp_row() {
  return int(threadIdx.x) / kWarp / Tile<C>::column_groups * 16;
}
template <class C>
__device__ inline int warp_column(int tiles) {
  return int(threadIdx.x) / kWarp % Tile<C>::column_groups * tiles * 8;
}
/// f(row, column, element) for what this thread holds.
template <class C, int tiles, class F>
__device__ inline void for_elements(float (&c)[tiles][4], F&& f) {
  const int row = warp_row<C>() + int(threadIdx.x) % kWarp / 4;
  const int col = warp_column<C>(tiles) + int(threadIdx.x) % 4 * 2;
#pragma unroll
  for (int n = 0; n < tiles; ++n) {
#pragma unroll
    for (int i = 0; i < 4; ++i) f(row + i / 2 * 8, col + n * 8 + i % 2, c[n][i]);
  }
}
template <int tiles>
__device__ inline void clear(float (&c)[tiles][4]) {
#pragma unroll
  for (int n = 0; n < tiles; ++n) {
#pragma unroll
    for (int i = 0; i < 4; ++i) c[n][i] = 0;
  }
}

/// The bias of the offsets of a tile: element (query a, key b) at a - b + side - 1.
template <class C>
__device__ inline void load_bias(float* window, const AttentionOperands<C>& o, const AttentionTask& task, int head,
                                 int i0, int j0) {
  if (o.bias.data == nullptr) return;
  const std::int64_t first = (o.bias_cols - 1) / 2 + task.keys - task.queries + i0 - j0 - (Tile<C>::side - 1);
  for (int d = int(threadIdx.x); d < 2 * Tile<C>::side; d += kThreads) {
    const std::int64_t col = first + d;
    window[d] = col >= 0 && col < o.bias_cols ? *o.bias.at(head, col) : 0;
  }
}

/// Cuts stripes of `side` queries, or keys, of every segment, and calls f(tasks, count) for at most `most` at a time.
template <class F>
void for_tasks(const AttentionSegments& segments, bool of_queries, int side, int most, F&& f) {
  AttentionTasks tasks{};
  int count = 0;
  for (std::size_t s = 0; s < segments.query_begin.size(); ++s) {
    const std::int32_t rows = of_queries ? segments.query_count[s] : segments.key_count[s];
    for (std::int32_t tile = 0; tile * side < rows; ++tile) {
      tasks.task[count++] = {segments.query_begin[s],
                             segments.query_count[s],
                             segments.key_begin[s],
                             segments.key_count[s],
                             segments.prefix.empty() ? 0 : segments.prefix[s],
                             tile};
      if (count == most) f(tasks, std::exchange(count, 0));
    }
  }
  if (count > 0) f(tasks, count);
}

/// Calls f with the width, a constant, of the tiles that hold a head.
template <class F>
void with_head_width(int head_dim, F&& f) {
  FLANMOE_EXPECT(head_dim <= 256, "heads of {} columns: a GPU takes up to 256", head_dim);
  if (head_dim <= 32) return f(std::integral_constant<int, 32>{});
  if (head_dim <= 64) return f(std::integral_constant<int, 64>{});
  if (head_dim <= 128) return f(std::integral_constant<int, 128>{});
  return f(std::integral_constant<int, 256>{});
}

/// Rows of every operand begin on 16 bytes, and heads too.
inline bool heads_take_packs(const AttentionShape& shape, std::initializer_list<Tensor> operands) {
  bool wide = true;
  for (const Tensor& x : operands) {
    wide = wide && takes_packs(x) && std::size_t(shape.head_dim) * size_of(x.dtype) % 16 == 0;
  }
  return wide;
}

void attention_backward(KernelContext& context, const Tensor& dq_TQ, const Tensor& dk_TQ, const Tensor& dv_TQ,
                        const Tensor& dbias_HP, const Tensor& dout_TQ, const Tensor& q_TQ, const Tensor& k_TQ,
                        const Tensor& v_TQ, const Tensor& bias_HP, const Tensor& out_TQ, const Tensor& logsumexp_TH,
                        const AttentionSegments& segments, const AttentionShape& shape);
std::size_t attention_scratch_bytes(std::int64_t longest, DType compute, const AttentionShape& shape);

}  // namespace flanmoe::cuda
