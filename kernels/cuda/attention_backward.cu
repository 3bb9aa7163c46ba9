// The backward of attention: probabilities are computed again from the saved logsumexp. One kernel goes over keys for
// dq, one over queries for dk, dv and the bias gradient, so that every sum is in one block and in one order:
// with p = softmax(score): dv = p^T dout, dp = dout v^T, dscore = p (dp - <dout, out>), dq = scale dscore k,
// dk = scale dscore^T q, dbias = dscore summed over equal offsets.
#include "kernels/attention_checks.hpp"
#include "kernels/cuda/attention_tiles.cuh"

namespace flanmoe::cuda {
namespace {

template <class C, int width>
struct BackwardLayout {
  static constexpr std::size_t tile = sizeof(C) * Tile<C>::side * kStride<C, width>;
  static constexpr std::size_t score = sizeof(C) * Tile<C>::side * Tile<C>::score_stride;
  static constexpr std::size_t dout = tile, k = 2 * tile, v = 3 * tile, p = 4 * tile, dscore = p + score;
  static constexpr std::size_t logsumexp = dscore + score, delta = logsumexp + sizeof(float) * Tile<C>::side;
  static constexpr std::size_t bias = delta + sizeof(float) * Tile<C>::side;
  static constexpr std::size_t bytes = bias + sizeof(float) * 2 * Tile<C>::side;
};

/// Pointers to the parts of shared memory.
template <class C, int width>
struct BackwardTiles {
  using L = BackwardLayout<C, width>;
  C *q, *dout, *k, *v, *p, *dscore;
  float *logsumexp, *delta, *bias;
  __device__ BackwardTiles()
      : q(shared_memory<C>()),
        dout(shared_memory<C>(L::dout)),
        k(shared_memory<C>(L::k)),
        v(shared_memory<C>(L::v)),
        p(shared_memory<C>(L::p)),
        dscore(shared_memory<C>(L::dscore)),
        logsumexp(shared_memory<float>(L::logsumexp)),
        delta(shared_memory<float>(L::delta)),
        bias(shared_memory<float>(L::bias)) {}
};

/// Rows i0 .. i0 + rows of q and dout, and of every query its logsumexp and <dout, out>. Two barriers.
template <class C, int width>
__device__ inline void load_queries(const BackwardTiles<C, width>& s, const AttentionOperands<C>& o,
                                    const AttentionTask& task, int head, int i0, int rows) {
  const std::int64_t column = std::int64_t(head) * o.head_dim, first = task.q0 + i0;
  load_tile<width>(s.q, o.q.at(first, column), o.q.stride, rows, o);
  load_tile<width>(s.dout, o.dout.at(first, column), o.dout.stride, rows, o);
  __syncthreads();
  constexpr int per_row = Tile<C>::threads_per_row;
  const int row = int(threadIdx.x) / per_row, sub = int(threadIdx.x) % per_row;
  float dot = 0;
  if (row < rows) {
    const C* out = o.out_saved.at(first + row, column);
    for (int c = sub; c < o.head_dim; c += per_row) {
      dot += load_as_float(out[c]) * load_as_float(s.dout[row * kStride<C, width> + c]);
    }
  }
#pragma unroll
  for (int bits = per_row / 2; bits > 0; bits /= 2) dot += __shfl_xor_sync(kAllLanes, dot, bits);
  if (sub == 0) {
    s.delta[row] = dot;
    s.logsumexp[row] = row < rows ? *o.logsumexp.at(first + row, head) : 0;
  }
  __syncthreads();
}

/// p and dscore of query a and key b from score and dp, which they replace.
template <class C, int width>
__device__ inline void differentiate(const BackwardTiles<C, width>& s, const AttentionOperands<C>& o,
                                     const AttentionTask& task, int i0, int j0, int rows, int a, int b, float& score,
                                     float& dp) {
  const bool seen = a < rows && j0 + b < visible_keys(o, task, i0 + a);
  const float x = o.scale * score + (o.bias.data != nullptr ? s.bias[a - b + Tile<C>::side - 1] : 0.0F);
  score = seen ? expf(x - s.logsumexp[a]) : 0;
  dp = score * (dp - s.delta[a]);
}

template <class C, int width>
__global__ void __launch_bounds__(kThreads, 1)
    attention_dq(const AttentionOperands<C> o, const __grid_constant__ AttentionTasks tasks) {
  constexpr int side = Tile<C>::side, stride = kStride<C, width>, score_stride = Tile<C>::score_stride;
  constexpr int score_tiles = Tile<C>::score_tiles, head_tiles = kHeadTiles<C, width>;
  const BackwardTiles<C, width> s;
  const AttentionTask& task = tasks.task[blockIdx.y];
  const int head = int(blockIdx.x), i0 = task.tile * side, rows = std::min(side, task.queries - i0);
  const std::int64_t key_column = head / o.sharing * std::int64_t(o.head_dim);

  load_queries(s, o, task, head, i0, rows);
  float sum[head_tiles][4];
  clear(sum);
  const int most = visible_keys(o, task, i0 + rows - 1);
  for (int j0 = 0; j0 < most; j0 += side) {
    __syncthreads();
    load_tile<width>(s.k, o.k.at(task.k0 + j0, key_column), o.k.stride, std::min(side, task.keys - j0), o);
    load_tile<width>(s.v, o.v.at(task.k0 + j0, key_column), o.v.stride, std::min(side, task.keys - j0), o);
    load_bias(s.bias, o, task, head, i0, j0);
    __syncthreads();
    float score[score_tiles][4], dp[score_tiles][4];
    clear(score);
    clear(dp);
    const int row = warp_row<C>() * stride, col = warp_column<C>(score_tiles) * stride;
    multiply_tiles<true>(score, s.q + row, stride, s.k + col, stride, width);
    multiply_tiles<true>(dp, s.dout + row, stride, s.v + col, stride, width);
#pragma unroll
    for (int n = 0; n < score_tiles; ++n) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int a = warp_row<C>() + int(threadIdx.x) % kWarp / 4 + i / 2 * 8;
        const int b = warp_column<C>(score_tiles) + int(threadIdx.x) % 4 * 2 + n * 8 + i % 2;
        differentiate(s, o, task, i0, j0, rows, a, b, score[n][i], dp[n][i]);
        s.dscore[a * score_stride + b] = round_to<C>(dp[n][i]);
      }
    }
    __syncthreads();
    multiply_tiles<false>(sum, s.dscore + warp_row<C>() * score_stride, score_stride, s.k + warp_column<C>(head_tiles),
                          stride, side);
  }
  __syncthreads();
  for_elements<C>(sum, [&](int a, int c, float x) { s.q[a * stride + c] = round_to<C>(o.scale * x); });
  __syncthreads();
  store_tile<width>(o.dq.at(task.q0 + i0, std::int64_t(head) * o.head_dim), o.dq.stride, s.q, rows, o);
}

/// Adds the dscore of a tile, which lies by keys, to the bias gradients of this task and head: one thread an offset.
template <class C>
__device__ inline void add_offsets(float* partial, const C* dscore) {
  constexpr int side = Tile<C>::side;
  const int d = int(threadIdx.x);  // offset a - b + side - 1 of query a and key b
  if (d >= 2 * side - 1) return;
  float sum = 0;
  for (int b = std::max(0, side - 1 - d); b < std::min(side, 2 * side - 1 - d); ++b) {
    sum += load_as_float(dscore[b * Tile<C>::score_stride + d - (side - 1) + b]);
  }
  partial[d] += sum;
}

template <class C, int width>
__global__ void __launch_bounds__(kThreads, 1)
    attention_dkv(const AttentionOperands<C> o, const __grid_constant__ AttentionTasks tasks) {
  constexpr int side = Tile<C>::side, stride = kStride<C, width>, score_stride = Tile<C>::score_stride;
  constexpr int score_tiles = Tile<C>::score_tiles, head_tiles = kHeadTiles<C, width>;
  const BackwardTiles<C, width> s;
  const AttentionTask& task = tasks.task[blockIdx.y];
  const int key_head = int(blockIdx.x), j0 = task.tile * side, keys = std::min(side, task.keys - j0);
  const std::int64_t key_column = std::int64_t(key_head) * o.head_dim;

  load_tile<width>(s.k, o.k.at(task.k0 + j0, key_column), o.k.stride, keys, o);
  load_tile<width>(s.v, o.v.at(task.k0 + j0, key_column), o.v.stride, keys, o);
  float dk[head_tiles][4], dv[head_tiles][4];
  clear(dk);
  clear(dv);
  for (int head = key_head * o.sharing; head < (key_head + 1) * o.sharing; ++head) {
    float* partial = o.partial + (std::int64_t(blockIdx.y) * o.heads + head) * o.partial_length;
    for (int i = int(threadIdx.x); o.partial != nullptr && i < o.partial_length; i += kThreads) partial[i] = 0;
    for (int i0 = 0; i0 < task.queries; i0 += side) {
      const int rows = std::min(side, task.queries - i0);
      if (visible_keys(o, task, i0 + rows - 1) <= j0) continue;
      __syncthreads();
      load_bias(s.bias, o, task, head, i0, j0);
      load_queries(s, o, task, head, i0, rows);
      float score[score_tiles][4], dp[score_tiles][4];  // a row for each key
      clear(score);
      clear(dp);
      const int row = warp_row<C>() * stride, col = warp_column<C>(score_tiles) * stride;
      multiply_tiles<true>(score, s.k + row, stride, s.q + col, stride, width);
      multiply_tiles<true>(dp, s.v + row, stride, s.dout + col, stride, width);
#pragma unroll
      for (int n = 0; n < score_tiles; ++n) {
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          const int b = warp_row<C>() + int(threadIdx.x) % kWarp / 4 + i / 2 * 8;
          const int a = warp_column<C>(score_tiles) + int(threadIdx.x) % 4 * 2 + n * 8 + i % 2;
          differentiate(s, o, task, i0, j0, rows, a, b, score[n][i], dp[n][i]);
          s.p[b * score_stride + a] = round_to<C>(score[n][i]);
          s.dscore[b * score_stride + a] = round_to<C>(dp[n][i]);
        }
      }
      __syncthreads();
      const int strip = warp_row<C>() * score_stride, part = warp_column<C>(head_tiles);
      multiply_tiles<false>(dv, s.p + strip, score_stride, s.dout + part, stride, side);
      multiply_tiles<false>(dk, s.dscore + strip, score_stride, s.q + part, stride, side);
      if (o.partial != nullptr) add_offsets(partial + i0, s.dscore);
    }
  }
  __syncthreads();
  for_elements<C>(dk, [&](int b, int c, float x) { s.q[b * stride + c] = round_to<C>(o.scale * x); });
  for_elements<C>(dv, [&](int b, int c, float x) { s.dout[b * stride + c] = round_to<C>(x); });
  __syncthreads();
  store_tile<width>(o.dk.at(task.k0 + j0, key_column), o.dk.stride, s.q, keys, o);
  store_tile<width>(o.dv.at(task.k0 + j0, key_column), o.dv.stride, s.dout, keys, o);
}

/// dbias += the buffers of the tasks, in their order. Grid: offsets x heads.
template <class C>
__global__ void __launch_bounds__(kThreads)
    sum_offsets(const AttentionOperands<C> o, const __grid_constant__ AttentionTasks tasks, int count) {
  constexpr int side = Tile<C>::side;
  const int head = int(blockIdx.y);
  const std::int64_t col = std::int64_t(blockIdx.x) * kThreads + threadIdx.x;
  if (col >= o.bias_cols) return;
  float sum = 0;
  for (int t = 0; t < count; ++t) {
    const AttentionTask& task = tasks.task[t];
    const std::int64_t first = (o.bias_cols - 1) / 2 + task.keys - task.queries - task.tile * side - (side - 1);
    const std::int64_t length = (task.queries + side - 1) / side * side + side - 1;
    const std::int64_t at = col - first;
    if (task.queries > 0 && at >= 0 && at < length) {
      sum += o.partial[(std::int64_t(t) * o.heads + head) * o.partial_length + at];
    }
  }
  *o.dbias.at(head, col) += sum;
}

std::int64_t partial_length(std::int64_t longest, int side) { return (longest + side - 1) / side * side + side; }

template <class C, int width>
void backward_in(KernelContext& context, AttentionOperands<C>& o, const AttentionSegments& segments,
                 const AttentionShape& shape) {
  constexpr std::size_t shared = BackwardLayout<C, width>::bytes;
  for_tasks(segments, true, Tile<C>::side, kMostTasks, [&](const AttentionTasks& tasks, int count) {
    launch(attention_dq<C, width>, dim3(unsigned(shape.heads), unsigned(count)), kThreads, shared, context, o, tasks);
  });
  DeviceScratch scratch(context);
  const bool biased = o.dbias.data != nullptr;
  const int most = biased ? kMostBiasTasks : kMostTasks;
  if (biased) {
    std::int64_t longest = 0;
    for (const std::int64_t queries : segments.query_count) longest = std::max(longest, queries);
    o.partial_length = partial_length(longest, Tile<C>::side);
    o.partial = scratch.take<float>(most * shape.heads * o.partial_length);
  }
  for_tasks(segments, false, Tile<C>::side, most, [&](const AttentionTasks& tasks, int count) {
    launch(attention_dkv<C, width>, dim3(unsigned(shape.key_heads()), unsigned(count)), kThreads, shared, context, o,
           tasks);
    if (!biased) return;
    launch(sum_offsets<C>, dim3(blocks_for(o.bias_cols, kThreads), unsigned(shape.heads)), kThreads, 0, context, o,
           tasks, count);
  });
}

}  // namespace

void attention_backward(KernelContext& context, const Tensor& dq_TQ, const Tensor& dk_TQ, const Tensor& dv_TQ,
                        const Tensor& dbias_HP, const Tensor& dout_TQ, const Tensor& q_TQ, const Tensor& k_TQ,
                        const Tensor& v_TQ, const Tensor& bias_HP, const Tensor& out_TQ, const Tensor& logsumexp_TH,
                        const AttentionSegments& segments, const AttentionShape& shape) {
  check_attention_backward(dq_TQ, dk_TQ, dv_TQ, dbias_HP, dout_TQ, q_TQ, k_TQ, v_TQ, bias_HP, out_TQ, logsumexp_TH,
                           segments, shape);
  with_type<float, bf16>(q_TQ, "q", [&]<class C>(std::type_identity<C>) {
    AttentionOperands<C> o{};
    o.q = elements<const C>(q_TQ);
    o.k = elements<const C>(k_TQ);
    o.v = elements<const C>(v_TQ);
    o.out_saved = elements<const C>(out_TQ);
    o.dout = elements<const C>(dout_TQ);
    o.dq = elements<C>(dq_TQ);
    o.dk = elements<C>(dk_TQ);
    o.dv = elements<C>(dv_TQ);
    o.logsumexp = elements<float>(logsumexp_TH);
    o.dbias = elements<float>(dbias_HP);
    o.bias = elements<const float>(bias_HP);
    o.bias_cols = bias_HP.cols;
    o.heads = shape.heads;
    o.head_dim = shape.head_dim;
    o.sharing = shape.sharing();
    o.causal = shape.causal;
    o.wide = heads_take_packs(shape, {q_TQ, k_TQ, v_TQ, dout_TQ, dq_TQ, dk_TQ, dv_TQ});
    o.scale = shape.scale;
    with_head_width(shape.head_dim, [&](auto width) { backward_in<C, width>(context, o, segments, shape); });
  });
}

std::size_t attention_scratch_bytes(std::int64_t longest, DType compute, const AttentionShape& shape) {
  const int side = compute == DType::bf16 ? Tile<bf16>::side : Tile<float>::side;
  return scratch_size<float>(kMostBiasTasks * shape.heads * partial_length(longest, side));
}

}  // namespace flanmoe::cuda
