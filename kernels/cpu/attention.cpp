// Forward: blocks of queries against blocks of keys, softmax kept up to date from block to block (online softmax).
#include "kernels/attention.hpp"

#include <cmath>
#include <limits>

#include "kernels/attention_checks.hpp"
#include "kernels/cpu/attention_tiles.hpp"
#include "kernels/cpu/vector_math.hpp"

namespace flanmoe::cpu {
namespace {

constexpr float kNothing = -std::numeric_limits<float>::infinity();
/// With so few queries (decoding) plain vector loops beat packing the keys for tiles.
constexpr std::int64_t kFewQueries = 4;

std::int64_t mirror_width(std::int64_t longest) { return round_up(2 * longest + 1, 16); }

struct Operands {
  const Tensor &out_TQ, &logsumexp_TH, &q_TQ, &k_TQ, &v_TQ, &bias_HP;
  const AttentionShape& shape;
  std::int64_t longest = 0;              // of the segments
  const float* mirrored_bias = nullptr;  // H x mirror_width, by (key position - query position) + longest

  /// Biases of a query for key 0, 1, 2, ...; null without a bias.
  const float* bias_at(const Place& place, std::int64_t query) const {
    if (mirrored_bias == nullptr) return nullptr;
    return mirrored_bias + place.head * mirror_width(longest) + longest - (place.shift + query);
  }
  /// Keys [begin, begin+count) that the query sees.
  std::int64_t visible(const Place& place, std::int64_t query, std::int64_t begin, std::int64_t count) const {
    return std::clamp<std::int64_t>(place.seen(shape, query) - begin, 0, count);
  }
};

template <class T>
struct Memory {
  Memory(char* base, const HeadTile& head) {
    Pieces pieces(base);
    q = pieces.take<T>(kBlock * head.depth);
    k = pieces.take<T>(kBlock * head.depth);
    v = pieces.take<T>(kBlock * head.cols);
    score = pieces.take<float>(kTileRows * kBlock);
    weight = pieces.take<T>(kTileRows * kBlock);
    tile = pieces.take<float>(kTileRows * head.cols);
    sum = pieces.take<float>(kBlock * head.cols);
    largest = pieces.take<float>(kBlock);
    total = pieces.take<float>(kBlock);
    bytes = pieces.used();
  }
  T *q, *k, *v;            // queries (dense), keys^T and values (packed) of the current blocks
  float* score;            // a tile of scores
  T* weight;               // exp(score - largest)
  float *tile, *sum;       // values weighted: of one tile, of all keys so far
  float *largest, *total;  // of each query: largest score so far, sum of exp(score - largest)
  std::int64_t bytes = 0;
};

/// Scores of one query and `count` visible keys become weights; returns the factor for what was summed before.
template <class T>
float update_row(T* __restrict weight, float* __restrict score, std::int64_t count, std::int64_t depth,
                 const float* __restrict bias, float scale, float* largest, float* total) {
  for (std::int64_t j = count; j < depth; ++j) weight[j] = T(0.0F);
  if (count == 0) return 1.0F;
  if (bias != nullptr) {
    for (std::int64_t j = 0; j < count; ++j) score[j] = scale * score[j] + bias[j];
  } else {
    for (std::int64_t j = 0; j < count; ++j) score[j] = scale * score[j];
  }
  float top = *largest;
#pragma omp simd reduction(max : top)
  for (std::int64_t j = 0; j < count; ++j) top = score[j] > top ? score[j] : top;
  for (std::int64_t j = 0; j < count; ++j) score[j] = fast_exp(score[j] - top);
  const float sum = lane_sum<float>(count, [=](std::int64_t j) { return score[j]; });
  for (std::int64_t j = 0; j < count; ++j) weight[j] = T(score[j]);
  const float factor = fast_exp(*largest - top);
  *total = *total * factor + sum;
  *largest = top;
  return factor;
}

/// Writes out = sum / total and logsumexp of one query.
template <class C>
void finish_row(const Operands& o, const Place& place, std::int64_t query, const float* sum, float largest,
                float total) {
  const float factor = total > 0 ? 1.0F / total : 0.0F;
  C* out = o.out_TQ.row<C>(place.q0 + query) + place.head * o.shape.head_dim;
  for (std::int64_t c = 0; c < o.shape.head_dim; ++c) out[c] = C(sum[c] * factor);
  if (!o.logsumexp_TH.absent()) {
    o.logsumexp_TH.row<float>(place.q0 + query)[place.head] = total > 0 ? largest + std::log(total) : kNothing;
  }
}

/// Rows [strip, strip+rows) of the query block against the packed keys [begin, begin+count).
template <class T>
void attend_strip(const Operands& o, const Place& place, const HeadTile& head, const Memory<T>& m, std::int64_t block,
                  std::int64_t strip, std::int64_t rows, std::int64_t begin, std::int64_t count) {
  if (o.visible(place, block + strip + rows - 1, begin, count) == 0) return;  // all of these keys come later
  const DType dtype = head.dtype;
  const std::int64_t padded_rows = round_up(rows, kTileRowStep);
  const std::int64_t padded = round_up(count, kTileColStep);      // keys as columns of scores
  const std::int64_t depth = round_up(count, depth_step(dtype));  // keys as the depth of what is summed
  TileKernel::get(dtype, padded_rows, head.depth, padded)(m.score, m.q + strip * head.depth, m.k);
  float factor[kTileRows];
  for (std::int64_t i = 0; i < rows; ++i) {
    const std::int64_t query = block + strip + i;
    const float* bias = o.bias_at(place, query);
    factor[i] =
        update_row(m.weight + i * depth, m.score + i * padded, o.visible(place, query, begin, count), depth,
                   bias == nullptr ? nullptr : bias + begin, o.shape.scale, m.largest + strip + i, m.total + strip + i);
  }
  std::fill_n(m.weight + rows * depth, (padded_rows - rows) * depth, T(0.0F));
  TileKernel::get(dtype, padded_rows, depth, head.cols)(m.tile, m.weight, m.v);
  for (std::int64_t i = 0; i < rows; ++i) {
    float* sum = m.sum + (strip + i) * head.cols;
    const float* tile = m.tile + i * head.cols;
    for (std::int64_t c = 0; c < head.cols; ++c) sum[c] = sum[c] * factor[i] + tile[c];
  }
}

template <class C, class T>
void attend(const Operands& o, const Place& place, const HeadTile& head, const Memory<T>& m) {
  const DType dtype = head.dtype;
  const Tensor q = place.query_rows(o.q_TQ, o.shape);
  const Tensor k = place.key_rows(o.k_TQ, o.shape);
  const Tensor v = place.key_rows(o.v_TQ, o.shape);
  for (std::int64_t block = 0; block < place.queries; block += kBlock) {
    const std::int64_t queries = std::min(kBlock, place.queries - block);
    pack_a(m.q, head.dtype, {&q, false, block, queries, 0, head.dim}, round_up(queries, kTileRowStep), head.depth);
    std::fill_n(m.sum, queries * head.cols, 0.0F);
    std::fill_n(m.largest, queries, kNothing);
    std::fill_n(m.total, queries, 0.0F);
    const std::int64_t seen = o.visible(place, block + queries - 1, 0, place.keys);
    for (std::int64_t begin = 0; begin < seen; begin += kBlock) {
      const std::int64_t count = std::min(kBlock, seen - begin);
      const std::int64_t padded = round_up(count, kTileColStep);
      pack_b(m.k, head.dtype, {&k, true, 0, head.dim, begin, count}, head.depth, padded,
             TileKernel::get(dtype, kTileRowStep, head.depth, padded).layout());
      const std::int64_t depth = round_up(count, depth_step(dtype));
      pack_b(m.v, head.dtype, {&v, false, begin, count, 0, head.dim}, depth, head.cols,
             TileKernel::get(dtype, kTileRowStep, depth, head.cols).layout());
      for (std::int64_t strip = 0; strip < queries; strip += kTileRows) {
        attend_strip(o, place, head, m, block, strip, std::min(kTileRows, queries - strip), begin, count);
      }
    }
    for (std::int64_t i = 0; i < queries; ++i) {
      finish_row<C>(o, place, block + i, m.sum + i * head.cols, m.largest[i], m.total[i]);
    }
  }
}

/// The same for one query at a time, without tiles.
template <class C, class T>
void attend_few(const Operands& o, const Place& place, const Memory<T>& m) {
  const std::int64_t dim = o.shape.head_dim;
  const Tensor k = place.key_rows(o.k_TQ, o.shape);
  const Tensor v = place.key_rows(o.v_TQ, o.shape);
  for (std::int64_t i = 0; i < place.queries; ++i) {
    const C* q = place.query_rows(o.q_TQ, o.shape).row<C>(i);
    float query[kWidestHead], sum[kWidestHead] = {};
    for (std::int64_t c = 0; c < dim; ++c) query[c] = widened(q[c]);
    float largest = kNothing, total = 0;
    const float* bias = o.bias_at(place, i);
    const std::int64_t seen = o.visible(place, i, 0, place.keys);
    for (std::int64_t begin = 0; begin < seen; begin += kBlock) {
      const std::int64_t count = std::min(kBlock, seen - begin);
      for (std::int64_t j = 0; j < count; ++j) {
        const C* key = k.row<C>(begin + j);
        m.score[j] = lane_sum<float>(dim, [&](std::int64_t c) { return query[c] * widened(key[c]); });
      }
      const float factor = update_row(m.weight, m.score, count, count, bias == nullptr ? nullptr : bias + begin,
                                      o.shape.scale, &largest, &total);
      for (std::int64_t c = 0; c < dim; ++c) sum[c] *= factor;
      for (std::int64_t j = 0; j < count; ++j) {
        const C* value = v.row<C>(begin + j);
        for (std::int64_t c = 0; c < dim; ++c) sum[c] += m.score[j] * widened(value[c]);
      }
    }
    finish_row<C>(o, place, i, sum, largest, total);
  }
}

/// Turns the bias round, so that it is read in the order of the keys.
const float* mirror_bias(ScratchScope& scratch, const Tensor& bias_HP, std::int64_t longest) {
  const std::int64_t width = mirror_width(longest);
  float* mirrored = scratch.take<float>(bias_HP.rows * width);
  const std::int64_t reach = std::min(longest, (bias_HP.cols - 1) / 2);
  for (std::int64_t h = 0; h < bias_HP.rows; ++h) {
    const float* middle = bias_HP.row<float>(h) + (bias_HP.cols - 1) / 2;
    for (std::int64_t n = -reach; n <= reach; ++n) mirrored[h * width + longest - n] = middle[n];
  }
  return mirrored;
}

template <class C, class T>
void forward_in(KernelContext& context, Operands o, const AttentionSegments& segments) {
  const HeadTile head(dtype_of<T>::value, o.shape);
  TileKernel::get(head.dtype, kTileRowStep, head.depth, kTileColStep);  // fails here, not among the threads
  ScratchScope scratch(context);
  o.longest = longest_of(segments);
  if (!o.bias_HP.absent()) o.mirrored_bias = mirror_bias(scratch, o.bias_HP, o.longest);
  const std::int64_t thread_bytes = forward_thread_bytes(dtype_of<C>::value, o.shape);
  char* memory = reinterpret_cast<char*>(scratch.take<float>(omp_get_max_threads() * thread_bytes / 4));
#pragma omp parallel
  {
    const Memory<T> mine(memory + omp_get_thread_num() * thread_bytes, head);
#pragma omp for collapse(2) schedule(dynamic)
    for (std::int64_t s = 0; s < segments.count(); ++s) {
      for (std::int64_t h = 0; h < o.shape.heads; ++h) {
        const Place place(segments, s, h);
        if (place.queries <= kFewQueries) {
          attend_few<C>(o, place, mine);
        } else {
          attend<C>(o, place, head, mine);
        }
      }
    }
  }
}

void forward(KernelContext& context, const Tensor& out_TQ, const Tensor& logsumexp_TH, const Tensor& q_TQ,
             const Tensor& k_TQ, const Tensor& v_TQ, const Tensor& bias_HP, const AttentionSegments& segments,
             const AttentionShape& shape) {
  check_attention_forward(out_TQ, logsumexp_TH, q_TQ, k_TQ, v_TQ, bias_HP, segments, shape);
  const Operands operands{out_TQ, logsumexp_TH, q_TQ, k_TQ, v_TQ, bias_HP, shape, 0, nullptr};
  with_tile_type(q_TQ.dtype, [&]<class C, class T>(C, T) { forward_in<C, T>(context, operands, segments); });
}

std::size_t scratch_bytes(std::int64_t longest, DType compute, const AttentionShape& shape) {
  const std::int64_t forward_bytes = omp_get_max_threads() * forward_thread_bytes(compute, shape) +
                                     shape.heads * mirror_width(longest) * std::int64_t(sizeof(float)) + 64;
  return std::size_t(std::max(forward_bytes, backward_bytes(longest, compute, shape))) + 64;
}

}  // namespace

std::int64_t forward_thread_bytes(DType compute, const AttentionShape& shape) {
  std::int64_t bytes = 0;
  with_tile_type(
      compute, [&]<class C, class T>(C, T) { bytes = Memory<T>(nullptr, HeadTile(dtype_of<T>::value, shape)).bytes; });
  return bytes;
}

const AttentionKernels attention_kernels{forward, attention_backward, scratch_bytes};

}  // namespace flanmoe::cpu
