// Backward: probabilities are computed again from logsumexp, transposed (a row per key), so that sums over queries run
// along rows and only one tile has to be turned.
//
//   p = exp(score - logsumexp), dp = dout.v^T, dscore = p (dp - <dout, out>)
//   dv = p^T.dout, dk = scale dscore^T.q, dq = scale dscore.k, dbias = dscore summed over equal offsets
//
// One task takes one key/value head, with the query heads that share it, of a fixed share of the segments, one after
// the other, and sums dbias in buffers of its own; the buffers are then added in the order of the shares. So nothing
// depends on the number of threads.
#include <cmath>

#include "kernels/attention_checks.hpp"
#include "kernels/cpu/attention_tiles.hpp"
#include "kernels/cpu/vector_math.hpp"

namespace flanmoe::cpu {
namespace {

constexpr std::int64_t kShares = 16;  // of the segments

struct Operands {
  const Tensor &dq_TQ, &dk_TQ, &dv_TQ, &dbias_HP, &dout_TQ, &q_TQ, &k_TQ, &v_TQ, &bias_HP, &out_TQ, &logsumexp_TH;
  const AttentionShape& shape;
};

template <class T>
struct Memory {
  Memory(char* base, const HeadTile& head, std::int64_t longest) {
    Pieces pieces(base);
    q_turned = pieces.take<T>(kBlock * head.depth);
    dout_turned = pieces.take<T>(kBlock * head.depth);
    q = pieces.take<T>(kBlock * head.cols);
    dout = pieces.take<T>(kBlock * head.cols);
    k_rows = pieces.take<T>(kTileRows * head.depth);
    v_rows = pieces.take<T>(kTileRows * head.depth);
    k = pieces.take<T>(kTileRows * head.cols);
    score = pieces.take<float>(kTileRows * kBlock);
    dp = pieces.take<float>(kTileRows * kBlock);
    p = pieces.take<T>(kTileRows * kBlock);
    dscore = pieces.take<T>(kTileRows * kBlock);
    dscore_turned = pieces.take<T>(kBlock * kTileRows);
    tile = pieces.take<float>(kTileRows * head.cols);
    dq = pieces.take<float>(kBlock * head.cols);
    dk = pieces.take<float>(longest * head.cols);
    dv = pieces.take<float>(longest * head.cols);
    logsumexp = pieces.take<float>(kBlock);
    out_dot = pieces.take<float>(kBlock);
    bytes = pieces.used();
  }
  T *q_turned, *dout_turned, *q, *dout;  // packed, of the block of queries: [head dim x queries], [queries x head dim]
  T *k_rows, *v_rows, *k;                // of the strip of keys: dense, dense, packed
  float *score, *dp;                     // keys x queries
  T *p, *dscore, *dscore_turned;
  float *tile, *dq, *dk, *dv;  // sums over all keys (dq) and over all queries (dk, dv)
  float *logsumexp, *out_dot;  // of the block of queries: <dout, out>
  std::int64_t bytes = 0;
};

/// A block of queries and a strip of keys of one place.
struct Pair {
  std::int64_t block, queries, strip, keys;
};

PackedLayout layout_for(DType dtype, std::int64_t depth, std::int64_t cols) {
  return TileKernel::get(dtype, kTileRowStep, depth, cols).layout();
}

template <class C, class T>
void load_queries(const Operands& o, const Place& place, const HeadTile& head, const Memory<T>& m, std::int64_t block,
                  std::int64_t queries) {
  const DType dtype = head.dtype;
  const Tensor q = place.query_rows(o.q_TQ, o.shape);
  const Tensor dout = place.query_rows(o.dout_TQ, o.shape);
  const Tensor out = place.query_rows(o.out_TQ, o.shape);
  const std::int64_t padded = round_up(queries, kTileColStep);
  const PackedLayout turned = layout_for(dtype, head.depth, padded);
  const std::int64_t depth = round_up(queries, depth_step(dtype));
  const PackedLayout straight = layout_for(dtype, depth, head.cols);
  pack_b(m.q_turned, head.dtype, {&q, true, 0, head.dim, block, queries}, head.depth, padded, turned);
  pack_b(m.dout_turned, head.dtype, {&dout, true, 0, head.dim, block, queries}, head.depth, padded, turned);
  pack_b(m.q, head.dtype, {&q, false, block, queries, 0, head.dim}, depth, head.cols, straight);
  pack_b(m.dout, head.dtype, {&dout, false, block, queries, 0, head.dim}, depth, head.cols, straight);
  for (std::int64_t i = 0; i < queries; ++i) {
    const C* a = dout.row<C>(block + i);
    const C* b = out.row<C>(block + i);
    m.out_dot[i] = lane_sum<float>(head.dim, [=](std::int64_t c) { return widened(a[c]) * widened(b[c]); });
    m.logsumexp[i] = o.logsumexp_TH.row<float>(place.q0 + block + i)[place.head];
  }
  std::fill_n(m.dq, queries * head.cols, 0.0F);
}

template <class T>
void load_keys(const Operands& o, const Place& place, const HeadTile& head, const Memory<T>& m, std::int64_t strip,
               std::int64_t keys) {
  const DType dtype = head.dtype;
  const Tensor k = place.key_rows(o.k_TQ, o.shape);
  const Tensor v = place.key_rows(o.v_TQ, o.shape);
  const std::int64_t rows = round_up(keys, kTileRowStep);
  const std::int64_t depth = round_up(keys, depth_step(dtype));
  pack_a(m.k_rows, head.dtype, {&k, false, strip, keys, 0, head.dim}, rows, head.depth);
  pack_a(m.v_rows, head.dtype, {&v, false, strip, keys, 0, head.dim}, rows, head.depth);
  pack_b(m.k, head.dtype, {&k, false, strip, keys, 0, head.dim}, depth, head.cols, layout_for(dtype, depth, head.cols));
}

/// p and dscore (C) from the raw products; dbias of this place in `dbias`, whose middle is offset 0.
template <class T>
void softmax_gradient(const Operands& o, const Place& place, const Memory<T>& m, const Pair& pair, float* dbias) {
  const std::int64_t padded = round_up(pair.queries, kTileColStep);
  const std::int64_t depth = round_up(pair.queries, depth_step(dtype_of<T>::value));
  const float scale = o.shape.scale;
  for (std::int64_t r = 0; r < round_up(pair.keys, kTileRowStep); ++r) {
    T* p = m.p + r * depth;
    T* dscore = m.dscore + r * depth;
    const float* score = m.score + r * padded;
    float* dp = m.dp + r * padded;
    const std::int64_t offset = place.shift + pair.block - (pair.strip + r);  // of query 0 of the block to this key
    const bool by_position = o.shape.causal && pair.strip + r >= place.prefix;
    std::int64_t first = by_position ? std::clamp<std::int64_t>(-offset, 0, pair.queries) : 0;
    if (r >= pair.keys) first = pair.queries;
    std::fill_n(p, first, T(0.0F));
    std::fill_n(dscore, first, T(0.0F));
    std::fill_n(p + pair.queries, depth - pair.queries, T(0.0F));
    std::fill_n(dscore + pair.queries, depth - pair.queries, T(0.0F));
    const float* bias =
        o.bias_HP.absent() ? nullptr : o.bias_HP.row<float>(place.head) + offset + (o.bias_HP.cols - 1) / 2;
    float probability[kBlock];
    if (bias != nullptr) {
      for (std::int64_t i = first; i < pair.queries; ++i) {
        probability[i] = fast_exp(scale * score[i] + bias[i] - m.logsumexp[i]);
      }
    } else {
      for (std::int64_t i = first; i < pair.queries; ++i) {
        probability[i] = fast_exp(scale * score[i] - m.logsumexp[i]);
      }
    }
    for (std::int64_t i = first; i < pair.queries; ++i) dp[i] = probability[i] * (dp[i] - m.out_dot[i]);
    for (std::int64_t i = first; i < pair.queries; ++i) p[i] = T(probability[i]);
    for (std::int64_t i = first; i < pair.queries; ++i) dscore[i] = T(dp[i]);
    if (dbias == nullptr) continue;
    for (std::int64_t i = first; i < pair.queries; ++i) dbias[offset + i] += dp[i];
  }
}

void add_rows(float* sum, const float* tile, std::int64_t count) {
  for (std::int64_t i = 0; i < count; ++i) sum[i] += tile[i];
}

template <class T>
void pair_gradient(const Operands& o, const Place& place, const HeadTile& head, const Memory<T>& m, const Pair& pair,
                   float* dbias) {
  const DType dtype = head.dtype;
  const std::int64_t rows = round_up(pair.keys, kTileRowStep);
  const std::int64_t padded = round_up(pair.queries, kTileColStep);
  const TileKernel& against_queries = TileKernel::get(dtype, rows, head.depth, padded);
  against_queries(m.score, m.k_rows, m.q_turned);
  against_queries(m.dp, m.v_rows, m.dout_turned);
  softmax_gradient(o, place, m, pair, dbias);

  const std::int64_t query_depth = round_up(pair.queries, depth_step(dtype));
  const TileKernel& over_queries = TileKernel::get(dtype, rows, query_depth, head.cols);
  over_queries(m.tile, m.p, m.dout);
  add_rows(m.dv + pair.strip * head.cols, m.tile, pair.keys * head.cols);
  over_queries(m.tile, m.dscore, m.q);
  add_rows(m.dk + pair.strip * head.cols, m.tile, pair.keys * head.cols);

  const std::int64_t depth = round_up(pair.keys, depth_step(dtype));
  const Tensor dscore{m.dscore, dtype, 1, pair.keys, pair.queries, query_depth};
  pack_a(m.dscore_turned, head.dtype, {&dscore, true, 0, pair.queries, 0, pair.keys},
         round_up(pair.queries, kTileRowStep), depth);
  for (std::int64_t i = 0; i < pair.queries; i += kTileRows) {
    const std::int64_t queries = std::min(kTileRows, pair.queries - i);
    TileKernel::get(dtype, round_up(queries, kTileRowStep), depth, head.cols)(m.tile, m.dscore_turned + i * depth, m.k);
    add_rows(m.dq + i * head.cols, m.tile, queries * head.cols);
  }
}

/// Rows of the head's columns of y = factor * sum.
template <class C>
void write_rows(const Tensor& y, std::int64_t first, std::int64_t count, const float* sum, const HeadTile& head,
                float factor) {
  for (std::int64_t i = 0; i < count; ++i) {
    C* to = y.row<C>(first + i);
    for (std::int64_t c = 0; c < head.dim; ++c) to[c] = C(factor * sum[i * head.cols + c]);
  }
}

template <class C, class T>
void place_gradient(const Operands& o, const Place& place, const HeadTile& head, const Memory<T>& m, float* dbias) {
  for (std::int64_t block = 0; block < place.queries; block += kBlock) {
    const std::int64_t queries = std::min(kBlock, place.queries - block);
    load_queries<C>(o, place, head, m, block, queries);
    const std::int64_t seen = place.seen(o.shape, block + queries - 1);  // by the last query
    for (std::int64_t strip = 0; strip < seen; strip += kTileRows) {
      const Pair pair{block, queries, strip, std::min(kTileRows, seen - strip)};
      load_keys(o, place, head, m, strip, pair.keys);
      pair_gradient(o, place, head, m, pair, dbias);
    }
    write_rows<C>(place.query_rows(o.dq_TQ, o.shape), block, queries, m.dq, head, o.shape.scale);
  }
}

/// One segment and all heads that share key/value head g: dk and dv are sums over them. Head h adds to dbias +
/// (h - first head) * head_stride.
template <class C, class T>
void shared_gradient(const Operands& o, const AttentionSegments& segments, std::int64_t s, std::int64_t g,
                     const HeadTile& head, const Memory<T>& m, float* dbias, std::int64_t head_stride) {
  const std::int64_t first = g * o.shape.sharing();
  const Place shared(segments, s, first);
  std::fill_n(m.dk, shared.keys * head.cols, 0.0F);
  std::fill_n(m.dv, shared.keys * head.cols, 0.0F);
  for (std::int64_t i = 0; i < o.shape.sharing(); ++i) {
    place_gradient<C>(o, Place(segments, s, first + i), head, m, dbias == nullptr ? nullptr : dbias + i * head_stride);
  }
  write_rows<C>(shared.key_rows(o.dk_TQ, o.shape), 0, shared.keys, m.dk, head, o.shape.scale);
  write_rows<C>(shared.key_rows(o.dv_TQ, o.shape), 0, shared.keys, m.dv, head, 1.0F);
}

/// First segment of share g: shares have about equal numbers of scores.
std::int64_t share_begin(const AttentionSegments& segments, std::int64_t g) {
  double all = 0;
  for (std::int64_t s = 0; s < segments.count(); ++s) {
    all += double(segments.query_count[std::size_t(s)]) * segments.key_count[std::size_t(s)] + 1;
  }
  double before = 0;
  std::int64_t s = 0;
  while (s < segments.count() && before * kShares < all * double(g)) {
    before += double(segments.query_count[std::size_t(s)]) * segments.key_count[std::size_t(s)] + 1;
    ++s;
  }
  return s;
}

std::int64_t bias_width(std::int64_t longest) { return round_up(2 * longest + 1, 16); }

template <class C, class T>
void backward_in(KernelContext& context, const Operands& o, const AttentionSegments& segments) {
  const HeadTile head(dtype_of<T>::value, o.shape);
  layout_for(head.dtype, head.depth, kTileColStep);  // fails here, not among the threads
  const std::int64_t longest = longest_of(segments);
  const std::int64_t heads = o.shape.heads;
  const std::int64_t thread_bytes = Memory<T>(nullptr, head, longest).bytes;
  ScratchScope scratch(context);
  char* memory = reinterpret_cast<char*>(scratch.take<float>(omp_get_max_threads() * thread_bytes / 4));
  const std::int64_t width = bias_width(longest);
  const bool with_bias = !o.dbias_HP.absent();
  float* partial = with_bias ? scratch.take<float>(heads * kShares * width) : nullptr;
  if (with_bias) std::fill_n(partial, heads * kShares * width, 0.0F);
  std::int64_t begin[kShares + 1];
  for (std::int64_t g = 0; g <= kShares; ++g) begin[g] = g == kShares ? segments.count() : share_begin(segments, g);
#pragma omp parallel
  {
    const Memory<T> mine(memory + omp_get_thread_num() * thread_bytes, head, longest);
#pragma omp for collapse(2) schedule(dynamic)
    for (std::int64_t g = 0; g < kShares; ++g) {
      for (std::int64_t kv = 0; kv < o.shape.key_heads(); ++kv) {
        float* dbias = with_bias ? partial + (kv * o.shape.sharing() * kShares + g) * width + longest : nullptr;
        for (std::int64_t s = begin[g]; s < begin[g + 1]; ++s) {
          shared_gradient<C>(o, segments, s, kv, head, mine, dbias, kShares * width);
        }
      }
    }
  }
  if (!with_bias) return;
  for (std::int64_t h = 0; h < heads; ++h) {
    float* middle = o.dbias_HP.row<float>(h) + (o.dbias_HP.cols - 1) / 2;
    const std::int64_t reach = std::min(longest, (o.dbias_HP.cols - 1) / 2);
    for (std::int64_t g = 0; g < kShares; ++g) {
      const float* from = partial + (h * kShares + g) * width + longest;
      for (std::int64_t p = -reach; p <= reach; ++p) middle[p] += from[p];
    }
  }
}

}  // namespace

std::int64_t backward_bytes(std::int64_t longest, DType compute, const AttentionShape& shape) {
  std::int64_t thread_bytes = 0;
  with_tile_type(compute, [&]<class C, class T>(C, T) {
    thread_bytes = Memory<T>(nullptr, HeadTile(dtype_of<T>::value, shape), longest).bytes;
  });
  const std::int64_t partial = shape.heads * kShares * bias_width(longest) * std::int64_t(sizeof(float));
  return omp_get_max_threads() * thread_bytes + partial + 128;
}

void attention_backward(KernelContext& context, const Tensor& dq_TQ, const Tensor& dk_TQ, const Tensor& dv_TQ,
                        const Tensor& dbias_HP, const Tensor& dout_TQ, const Tensor& q_TQ, const Tensor& k_TQ,
                        const Tensor& v_TQ, const Tensor& bias_HP, const Tensor& out_TQ, const Tensor& logsumexp_TH,
                        const AttentionSegments& segments, const AttentionShape& shape) {
  check_attention_backward(dq_TQ, dk_TQ, dv_TQ, dbias_HP, dout_TQ, q_TQ, k_TQ, v_TQ, bias_HP, out_TQ, logsumexp_TH,
                           segments, shape);
  const Operands operands{dq_TQ, dk_TQ, dv_TQ,   dbias_HP, dout_TQ,      q_TQ,
                          k_TQ,  v_TQ,  bias_HP, out_TQ,   logsumexp_TH, shape};
  with_tile_type(q_TQ.dtype, [&]<class C, class T>(C, T) { backward_in<C, T>(context, operands, segments); });
}

}  // namespace flanmoe::cpu
