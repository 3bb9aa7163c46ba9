// Multi-head attention over ragged segments with a relative position bias; scores are never held for more than a tile.
#pragma once

#include <cstdint>
#include <span>

#include "kernels/context.hpp"
#include "tensor/tensor.hpp"

namespace flanmoe {

/// Segment s attends with query rows [query_begin[s], query_begin[s]+query_count[s]) to key rows
/// [key_begin[s], key_begin[s]+key_count[s]); nothing else is visible to it. Counts may be 0 (a query without keys
/// yields zero). The queries are the LAST query_count positions of a sequence of key_count positions when `causal` or
/// when a bias is given, so one description serves training and decoding with a KV cache:
/// position of query i = key_count - query_count + i; position of key j = j.
/// `prefix`, when given, is the number of keys at the beginning of each segment that every query sees even when
/// attention is causal (prefix language models: the input is seen in both directions).
struct AttentionSegments {
  std::span<const std::int32_t> query_begin, query_count, key_begin, key_count;
  std::span<const std::int32_t> prefix = {};
  std::int32_t count() const { return std::int32_t(query_begin.size()); }
};

struct AttentionShape {
  int heads = 0;
  int head_dim = 0;
  bool causal = false;  // query at position i sees keys at positions <= i
  float scale = 1.0F;   // scores are scale * q.k + bias; T5 uses 1 (folded into the initialisation)
  int kv_heads = 0;     // key/value heads, a divisor of heads; 0: as many as heads, 1: multi-query attention

  int key_heads() const { return kv_heads == 0 ? heads : kv_heads; }
  /// Query heads that share a key/value head: query head h reads key/value head h / sharing().
  int sharing() const { return heads / key_heads(); }
};

struct AttentionKernels {
  /// out = softmax(scale * q.k^T + bias) v.  q_TQ, k_TQ, v_TQ, out_TQ: C, head h in columns [h*K, (h+1)*K); k and v
  /// have key_heads() heads.
  /// logsumexp_TH (rows of q, H columns, A) is saved for the backward; may be absent.
  /// bias_HP: H x P (A) or absent; the bias of (query position i, key position j) is bias[h][(i - j) + (P-1)/2];
  /// P is odd and at least 2*max(key_count)-1.
  void (*forward)(KernelContext&, const Tensor& out_TQ, const Tensor& logsumexp_TH, const Tensor& q_TQ,
                  const Tensor& k_TQ, const Tensor& v_TQ, const Tensor& bias_HP, const AttentionSegments&,
                  const AttentionShape&);
  /// dq, dk, dv (C) are written for every row that belongs to a segment; dbias_HP (A) += (absent when bias is).
  void (*backward)(KernelContext&, const Tensor& dq_TQ, const Tensor& dk_TQ, const Tensor& dv_TQ,
                   const Tensor& dbias_HP, const Tensor& dout_TQ, const Tensor& q_TQ, const Tensor& k_TQ,
                   const Tensor& v_TQ, const Tensor& bias_HP, const Tensor& out_TQ, const Tensor& logsumexp_TH,
                   const AttentionSegments&, const AttentionShape&);
  /// Bytes of scratch that either takes, for segments of up to `longest` queries and keys.
  std::size_t (*scratch_bytes)(std::int64_t longest, DType compute, const AttentionShape&);
};

}  // namespace flanmoe

namespace flanmoe::reference {
extern const AttentionKernels attention_kernels;
}
namespace flanmoe::cpu {
extern const AttentionKernels attention_kernels;
}
namespace flanmoe::cuda {
extern const AttentionKernels attention_kernels;
}
