// The forward of attention: a block goes over the keys that a stripe of queries sees, tile by tile, with a running
// maximum and sum of every query (online softmax); scores never leave the block.
#include "kernels/attention_checks.hpp"
#include "kernels/cuda/attention_tiles.cuh"

namespace flanmoe::cuda {
namespace {

/// Where things are in shared memory, in bytes.
template <class C, int width>
struct ForwardLayout {
  static constexpr std::size_t tile = sizeof(C) * Tile<C>::side * kStride<C, width>;
  static constexpr std::size_t k = tile, v = 2 * tile, p = 3 * tile;
  static constexpr std::size_t scores = p + sizeof(C) * Tile<C>::side * Tile<C>::score_stride;
  static constexpr std::size_t factor = scores + sizeof(float) * Tile<C>::side * Tile<C>::score_stride;
  static constexpr std::size_t bias = factor + sizeof(float) * Tile<C>::side;
  static constexpr std::size_t bytes = bias + sizeof(float) * 2 * Tile<C>::side;
};

/// Running maximum and sum of one query, the same in all threads of its row.
struct Running {
  float largest = -std::numeric_limits<float>::infinity(), sum = 0;
};

/// Probabilities of a tile from its scores, relative to the maximum so far; `factor`: what sums so far are multiplied
/// by.
template <class C>
__device__ inline void soften(Running& run, C* p, const float* scores, float* factor) {
  constexpr int per_row = Tile<C>::threads_per_row, stride = Tile<C>::score_stride;
  const int row = int(threadIdx.x) / per_row, sub = int(threadIdx.x) % per_row;
  const float none = -std::numeric_limits<float>::infinity();
  float largest = run.largest, sum = 0;
  for (int c = sub; c < Tile<C>::side; c += per_row) largest = fmaxf(largest, scores[row * stride + c]);
#pragma unroll
  for (int bits = per_row / 2; bits > 0; bits /= 2) largest = fmaxf(largest, __shfl_xor_sync(kAllLanes, largest, bits));
  for (int c = sub; c < Tile<C>::side; c += per_row) {
    const float x = largest == none ? 0 : expf(scores[row * stride + c] - largest);
    sum += x;
    p[row * stride + c] = round_to<C>(x);
  }
#pragma unroll
  for (int bits = per_row / 2; bits > 0; bits /= 2) sum += __shfl_xor_sync(kAllLanes, sum, bits);
  const float kept = run.largest == none ? 0 : expf(run.largest - largest);
  if (sub == 0) factor[row] = kept;
  run = {largest, run.sum * kept + sum};
}

template <class C, int width>
__global__ void __launch_bounds__(kThreads)
    attention_forward(const AttentionOperands<C> o, const __grid_constant__ AttentionTasks tasks) {
  using L = ForwardLayout<C, width>;
  constexpr int side = Tile<C>::side, stride = kStride<C, width>, score_stride = Tile<C>::score_stride;
  C *q = shared_memory<C>(), *k = shared_memory<C>(L::k), *v = shared_memory<C>(L::v), *p = shared_memory<C>(L::p);
  float *scores = shared_memory<float>(L::scores), *factor = shared_memory<float>(L::factor);
  float* bias = shared_memory<float>(L::bias);
  const AttentionTask& task = tasks.task[blockIdx.y];
  const int head = int(blockIdx.x), i0 = task.tile * side, rows = std::min(side, task.queries - i0);
  const std::int64_t column = std::int64_t(head) * o.head_dim, key_column = head / o.sharing * std::int64_t(o.head_dim);

  load_tile<width>(q, o.q.at(task.q0 + i0, column), o.q.stride, rows, o);
  float sum[kHeadTiles<C, width>][4];
  clear(sum);
  Running run;
  const int most = visible_keys(o, task, i0 + rows - 1);
  for (int j0 = 0; j0 < most; j0 += side) {
    __syncthreads();
    load_tile<width>(k, o.k.at(task.k0 + j0, key_column), o.k.stride, std::min(side, task.keys - j0), o);
    load_tile<width>(v, o.v.at(task.k0 + j0, key_column), o.v.stride, std::min(side, task.keys - j0), o);
    load_bias(bias, o, task, head, i0, j0);
    __syncthreads();
    float score[Tile<C>::score_tiles][4];
    clear(score);
    multiply_tiles<true>(score, q + warp_row<C>() * stride, stride, k + warp_column<C>(Tile<C>::score_tiles) * stride,
                         stride, width);
    for_elements<C>(score, [&](int a, int b, float x) {
      x = o.scale * x + (o.bias.data != nullptr ? bias[a - b + side - 1] : 0.0F);
      const bool seen = a < rows && j0 + b < visible_keys(o, task, i0 + a);
      scores[a * score_stride + b] = seen ? x : -std::numeric_limits<float>::infinity();
    });
    __syncthreads();
    soften(run, p, scores, factor);
    __syncthreads();
    for_elements<C>(sum, [&](int a, int /*column*/, float& x) { x *= factor[a]; });
    multiply_tiles<false>(sum, p + warp_row<C>() * score_stride, score_stride, v + warp_column<C>(kHeadTiles<C, width>),
                          stride, side);
  }

  __syncthreads();
  const int row = int(threadIdx.x) / Tile<C>::threads_per_row;
  if (int(threadIdx.x) % Tile<C>::threads_per_row == 0) {
    factor[row] = run.sum > 0 ? 1 / run.sum : 0;
    if (row < rows && o.logsumexp.data != nullptr) {
      *o.logsumexp.at(task.q0 + i0 + row, head) =
          run.sum > 0 ? run.largest + logf(run.sum) : -std::numeric_limits<float>::infinity();
    }
  }
  __syncthreads();
  for_elements<C>(sum, [&](int a, int c, float x) { q[a * stride + c] = round_to<C>(x * factor[a]); });
  __syncthreads();
  store_tile<width>(o.out.at(task.q0 + i0, column), o.out.stride, q, rows, o);
}

void forward(KernelContext& context, const Tensor& out_TQ, const Tensor& logsumexp_TH, const Tensor& q_TQ,
             const Tensor& k_TQ, const Tensor& v_TQ, const Tensor& bias_HP, const AttentionSegments& segments,
             const AttentionShape& shape) {
  check_attention_forward(out_TQ, logsumexp_TH, q_TQ, k_TQ, v_TQ, bias_HP, segments, shape);
  with_type<float, bf16>(q_TQ, "q", [&]<class C>(std::type_identity<C>) {
    AttentionOperands<C> o{};
    o.q = elements<const C>(q_TQ);
    o.k = elements<const C>(k_TQ);
    o.v = elements<const C>(v_TQ);
    o.out = elements<C>(out_TQ);
    o.logsumexp = elements<float>(logsumexp_TH);
    o.bias = elements<const float>(bias_HP);
    o.bias_cols = bias_HP.cols;
    o.heads = shape.heads;
    o.head_dim = shape.head_dim;
    o.sharing = shape.sharing();
    o.causal = shape.causal;
    o.wide = heads_take_packs(shape, {q_TQ, k_TQ, v_TQ, out_TQ});
    o.scale = shape.scale;
    with_head_width(shape.head_dim, [&](auto width) {
      for_tasks(segments, true, Tile<C>::side, kMostTasks, [&](const AttentionTasks& tasks, int count) {
        launch(attention_forward<C, width>, dim3(unsigned(shape.heads), unsigned(count)), kThreads,
               ForwardLayout<C, width>::bytes, context, o, tasks);
      });
    });
  });
}

}  // namespace

const AttentionKernels attention_kernels{forward, attention_backward, attention_scratch_bytes};

}  // namespace flanmoe::cuda
