// Checks of the operands of attention, the same for every device.
#pragma once

#include "kernels/attention.hpp"

namespace flanmoe {

inline void expect_segments(const AttentionSegments& segments, std::int64_t query_rows, std::int64_t key_rows,
                            bool positions_matter) {
  const std::size_t count = segments.query_begin.size();
  FLANMOE_EXPECT(
      segments.query_count.size() == count && segments.key_begin.size() == count && segments.key_count.size() == count,
      "segment lists of lengths {} {} {} {}", count, segments.query_count.size(), segments.key_begin.size(),
      segments.key_count.size());
  FLANMOE_EXPECT(segments.prefix.empty() || segments.prefix.size() == count, "{} prefixes for {} segments",
                 segments.prefix.size(), count);
  for (std::size_t s = 0; s < count; ++s) {
    const std::int64_t q0 = segments.query_begin[s], q = segments.query_count[s];
    const std::int64_t k0 = segments.key_begin[s], k = segments.key_count[s];
    FLANMOE_EXPECT(q0 >= 0 && q >= 0 && q0 + q <= query_rows && k0 >= 0 && k >= 0 && k0 + k <= key_rows,
                   "segment {}: queries [{}, {}) of {}, keys [{}, {}) of {}", s, q0, q0 + q, query_rows, k0, k0 + k,
                   key_rows);
    FLANMOE_EXPECT(!positions_matter || k == 0 || q <= k, "segment {}: {} queries are not the last of {} keys", s, q,
                   k);
    if (segments.prefix.empty()) continue;
    FLANMOE_EXPECT(segments.prefix[s] >= 0 && segments.prefix[s] <= k, "segment {}: a prefix of {} of {} keys", s,
                   segments.prefix[s], k);
  }
}

inline void expect_bias(const Tensor& bias_HP, const AttentionSegments& segments, const AttentionShape& shape,
                        DType accumulate) {
  if (bias_HP.absent()) return;
  FLANMOE_EXPECT(bias_HP.dtype == accumulate && bias_HP.rows == shape.heads && bias_HP.cols % 2 == 1,
                 "bias {} x {} of {} for {} heads", bias_HP.rows, bias_HP.cols, name_of(bias_HP.dtype), shape.heads);
  for (const std::int64_t k : segments.key_count) {
    FLANMOE_EXPECT(bias_HP.cols >= 2 * k - 1, "a bias over {} offsets for {} keys", bias_HP.cols, k);
  }
}

/// A matrix of `rows` rows with `heads` heads side by side, of the compute type.
inline void expect_heads(const Tensor& x, std::int64_t rows, int heads, const AttentionShape& shape, DType compute,
                         const char* name) {
  FLANMOE_EXPECT(x.batch == 1 && x.rows == rows && x.cols == std::int64_t{heads} * shape.head_dim && x.dtype == compute,
                 "{}: {} x {} of {}, expected {} x {} x {} of {}", name, x.rows, x.cols, name_of(x.dtype), rows, heads,
                 shape.head_dim, name_of(compute));
}

inline void expect_logsumexp(const Tensor& logsumexp_TH, const Tensor& q_TQ, const AttentionShape& shape) {
  FLANMOE_EXPECT(logsumexp_TH.rows == q_TQ.rows && logsumexp_TH.cols == shape.heads &&
                     logsumexp_TH.dtype == accumulate_dtype(q_TQ.dtype),
                 "logsumexp {} x {} of {} for {} queries and {} heads", logsumexp_TH.rows, logsumexp_TH.cols,
                 name_of(logsumexp_TH.dtype), q_TQ.rows, shape.heads);
}

inline void check_attention_forward(const Tensor& out_TQ, const Tensor& logsumexp_TH, const Tensor& q_TQ,
                                    const Tensor& k_TQ, const Tensor& v_TQ, const Tensor& bias_HP,
                                    const AttentionSegments& segments, const AttentionShape& shape) {
  FLANMOE_EXPECT(shape.kv_heads >= 0 && shape.heads % shape.key_heads() == 0, "{} heads share {} key/value heads",
                 shape.heads, shape.kv_heads);
  expect_heads(q_TQ, q_TQ.rows, shape.heads, shape, q_TQ.dtype, "q");
  expect_heads(k_TQ, k_TQ.rows, shape.key_heads(), shape, q_TQ.dtype, "k");
  expect_heads(v_TQ, k_TQ.rows, shape.key_heads(), shape, q_TQ.dtype, "v");
  expect_heads(out_TQ, q_TQ.rows, shape.heads, shape, q_TQ.dtype, "out");
  if (!logsumexp_TH.absent()) expect_logsumexp(logsumexp_TH, q_TQ, shape);
  expect_segments(segments, q_TQ.rows, k_TQ.rows, shape.causal || !bias_HP.absent());
  expect_bias(bias_HP, segments, shape, accumulate_dtype(q_TQ.dtype));
}

inline void check_attention_backward(const Tensor& dq_TQ, const Tensor& dk_TQ, const Tensor& dv_TQ,
                                     const Tensor& dbias_HP, const Tensor& dout_TQ, const Tensor& q_TQ,
                                     const Tensor& k_TQ, const Tensor& v_TQ, const Tensor& bias_HP,
                                     const Tensor& out_TQ, const Tensor& logsumexp_TH,
                                     const AttentionSegments& segments, const AttentionShape& shape) {
  check_attention_forward(out_TQ, logsumexp_TH, q_TQ, k_TQ, v_TQ, bias_HP, segments, shape);
  expect_logsumexp(logsumexp_TH, q_TQ, shape);
  expect_heads(dout_TQ, q_TQ.rows, shape.heads, shape, q_TQ.dtype, "dout");
  expect_heads(dq_TQ, q_TQ.rows, shape.heads, shape, q_TQ.dtype, "dq");
  expect_heads(dk_TQ, k_TQ.rows, shape.key_heads(), shape, q_TQ.dtype, "dk");
  expect_heads(dv_TQ, k_TQ.rows, shape.key_heads(), shape, q_TQ.dtype, "dv");
  if (dbias_HP.absent()) return;
  FLANMOE_EXPECT(dbias_HP.rows == bias_HP.rows && dbias_HP.cols == bias_HP.cols && dbias_HP.dtype == bias_HP.dtype,
                 "dbias {} x {} for a bias of {} x {}", dbias_HP.rows, dbias_HP.cols, bias_HP.rows, bias_HP.cols);
}

}  // namespace flanmoe
