// What the forward and the backward of attention share: places, tile sizes, thread memory.
#pragma once

#include <omp.h>

#include <algorithm>
#include <cstdint>

#include "kernels/attention.hpp"
#include "kernels/cpu/packing.hpp"
#include "kernels/cpu/tile_kernel.hpp"
#include "kernels/scratch.hpp"

namespace flanmoe::cpu {

/// Queries (or keys) that are handled together: scores exist for kTileRows x kBlock of one (segment, head) at a time.
inline constexpr std::int64_t kBlock = kTileCols;
inline constexpr std::int64_t kWidestHead = 256;

/// One (segment, head) and the views of its rows.
struct Place {
  std::int64_t q0, queries, k0, keys;
  std::int64_t head;
  std::int64_t shift;   // position of query i is i + shift, of key j is j
  std::int64_t prefix;  // keys that every query sees

  Place(const AttentionSegments& segments, std::int64_t segment, std::int64_t h)
      : q0(segments.query_begin[std::size_t(segment)]),
        queries(segments.query_count[std::size_t(segment)]),
        k0(segments.key_begin[std::size_t(segment)]),
        keys(segments.key_count[std::size_t(segment)]),
        head(h),
        shift(keys - queries),
        prefix(segments.prefix.empty() ? 0 : segments.prefix[std::size_t(segment)]) {}

  Tensor query_rows(const Tensor& x, const AttentionShape& shape) const {
    return x.slice_rows(q0, queries).slice_cols(head * shape.head_dim, shape.head_dim);
  }
  Tensor key_rows(const Tensor& x, const AttentionShape& shape) const {
    return x.slice_rows(k0, keys).slice_cols(head / shape.sharing() * shape.head_dim, shape.head_dim);
  }
  /// Keys [0, seen) are what query i sees: a prefix, or all up to its own position.
  std::int64_t seen(const AttentionShape& shape, std::int64_t i) const {
    return shape.causal ? std::clamp<std::int64_t>(std::max(shift + i + 1, prefix), 0, keys) : keys;
  }
};

/// Type of the elements of tiles, and sizes of the head dimension in them: as a depth and as columns.
struct HeadTile {
  HeadTile(DType tile_type, const AttentionShape& shape)
      : dtype(tile_type),
        dim(shape.head_dim),
        depth(round_up(dim, depth_step(tile_type))),
        cols(round_up(dim, kTileColStep)) {
    FLANMOE_EXPECT(dim > 0 && dim <= kWidestHead, "heads of {} columns; 1 to {} are built", dim, kWidestHead);
  }
  DType dtype;
  std::int64_t dim, depth, cols;
};

/// Hands out pieces of a thread's memory, each on its own cache lines.
class Pieces {
 public:
  explicit Pieces(char* base) : base_(reinterpret_cast<std::uintptr_t>(base)) {}  // null: only counts
  template <class T>
  T* take(std::int64_t count) {
    T* piece = reinterpret_cast<T*>(base_ + std::uintptr_t(used_));
    used_ += round_up(count * std::int64_t(sizeof(T)), 64);
    return piece;
  }
  std::int64_t used() const { return used_; }

 private:
  std::uintptr_t base_;
  std::int64_t used_ = 0;
};

inline std::int64_t longest_of(const AttentionSegments& segments) {
  std::int64_t longest = 0;
  for (std::int64_t s = 0; s < segments.count(); ++s) {
    longest =
        std::max<std::int64_t>({longest, segments.query_count[std::size_t(s)], segments.key_count[std::size_t(s)]});
  }
  return longest;
}

inline float widened(float x) { return x; }
inline float widened(bf16 x) { return float(x); }

/// Calls f(C, T) with values of the storage type and of the type of tiles.
template <class F>
void with_tile_type(DType compute, F&& f) {
  const DType tile = tile_dtype(compute);
  if (compute == DType::f32) {
    f(float{}, float{});
  } else if (tile == DType::bf16) {
    f(bf16{}, bf16{});
  } else {
    f(bf16{}, float{});
  }
}

/// One thread's scratch for the forward, and for the backward with segments up to `longest`: bytes.
std::int64_t forward_thread_bytes(DType compute, const AttentionShape& shape);
std::int64_t backward_bytes(std::int64_t longest, DType compute, const AttentionShape& shape);

void attention_backward(KernelContext& context, const Tensor& dq_TQ, const Tensor& dk_TQ, const Tensor& dv_TQ,
                        const Tensor& dbias_HP, const Tensor& dout_TQ, const Tensor& q_TQ, const Tensor& k_TQ,
                        const Tensor& v_TQ, const Tensor& bias_HP, const Tensor& out_TQ, const Tensor& logsumexp_TH,
                        const AttentionSegments& segments, const AttentionShape& shape);

}  // namespace flanmoe::cpu
