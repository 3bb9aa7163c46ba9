// Written for clarity: the scores of one query at a time, in double.
#include "kernels/attention.hpp"

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "kernels/attention_checks.hpp"
#include "kernels/reference/scalar.hpp"

namespace flanmoe::reference {
namespace {

/// One (segment, head).
struct Place {
  std::int64_t q0, queries, k0, keys;
  std::int64_t head, column;  // column of the head's first element in q
  std::int64_t key_column;    // and of its key/value head in k and v
  std::int64_t prefix;        // keys that every query sees
};

template <class F>
void for_each_place(const AttentionSegments& segments, const AttentionShape& shape, F&& f) {
  for (std::size_t s = 0; s < segments.query_begin.size(); ++s) {
    for (std::int64_t h = 0; h < shape.heads; ++h) {
      f(Place{segments.query_begin[s], segments.query_count[s], segments.key_begin[s], segments.key_count[s], h,
              h * shape.head_dim, h / shape.sharing() * shape.head_dim,
              segments.prefix.empty() ? 0 : segments.prefix[s]});
    }
  }
}

/// Offset of query i and key j in the bias: (position of the query) - (position of the key) + (P-1)/2.
std::int64_t bias_column(const Place& place, std::int64_t i, std::int64_t j, const Tensor& bias_HP) {
  return (place.keys - place.queries + i) - j + (bias_HP.cols - 1) / 2;
}

/// Scores of query i against every key of its segment; -infinity where the key may not be seen.
template <class C, class A>
std::vector<double> scores(const Place& place, std::int64_t i, const Tensor& q_TQ, const Tensor& k_TQ,
                           const Tensor& bias_HP, const AttentionShape& shape) {
  const Matrix<C> q(q_TQ), k(k_TQ);
  std::vector<double> out(static_cast<std::size_t>(place.keys));
  for (std::int64_t j = 0; j < place.keys; ++j) {
    double dot = 0;
    for (std::int64_t c = 0; c < shape.head_dim; ++c) {
      dot += q(place.q0 + i, place.column + c) * k(place.k0 + j, place.key_column + c);
    }
    double score = double(shape.scale) * dot;
    if (!bias_HP.absent()) score += Matrix<A>(bias_HP)(place.head, bias_column(place, i, j, bias_HP));
    const bool visible = !shape.causal || j <= place.keys - place.queries + i || j < place.prefix;
    out[std::size_t(j)] = visible ? score : -std::numeric_limits<double>::infinity();
  }
  return out;
}

/// log of the sum of exponentials; -infinity for no keys.
double logsumexp(const std::vector<double>& score) {
  if (score.empty()) return -std::numeric_limits<double>::infinity();
  const double largest = *std::max_element(score.begin(), score.end());
  double sum = 0;
  for (const double s : score) sum += std::exp(s - largest);
  return largest + std::log(sum);
}

template <class C, class A>
void forward_in(const Tensor& out_TQ, const Tensor& logsumexp_TH, const Tensor& q_TQ, const Tensor& k_TQ,
                const Tensor& v_TQ, const Tensor& bias_HP, const AttentionSegments& segments,
                const AttentionShape& shape) {
  const Matrix<C> out(out_TQ), v(v_TQ);
  for_each_place(segments, shape, [&](const Place& place) {
    for (std::int64_t i = 0; i < place.queries; ++i) {
      const std::vector<double> score = scores<C, A>(place, i, q_TQ, k_TQ, bias_HP, shape);
      const double lse = logsumexp(score);
      for (std::int64_t c = 0; c < shape.head_dim; ++c) {
        double sum = 0;
        for (std::int64_t j = 0; j < place.keys; ++j) {
          sum += std::exp(score[std::size_t(j)] - lse) * v(place.k0 + j, place.key_column + c);
        }
        out.set(place.q0 + i, place.column + c, sum);
      }
      if (!logsumexp_TH.absent()) Matrix<A>(logsumexp_TH).set(place.q0 + i, place.head, lse);
    }
  });
}

void forward(KernelContext& /*context*/, const Tensor& out_TQ, const Tensor& logsumexp_TH, const Tensor& q_TQ,
             const Tensor& k_TQ, const Tensor& v_TQ, const Tensor& bias_HP, const AttentionSegments& segments,
             const AttentionShape& shape) {
  check_attention_forward(out_TQ, logsumexp_TH, q_TQ, k_TQ, v_TQ, bias_HP, segments, shape);
  with_type(q_TQ.dtype, [&]<class C>(C) {
    forward_in<C, Accumulate<C>>(out_TQ, logsumexp_TH, q_TQ, k_TQ, v_TQ, bias_HP, segments, shape);
  });
}

struct Gradients {
  const Tensor &dq, &dk, &dv, &dbias;
};

/// With p = softmax(score): dv = p^T dout, dp = dout v^T, dscore = p (dp - <dout, out>), dq = scale dscore k,
/// dk = scale dscore^T q, dbias = dscore summed over equal offsets. dk and dv are summed in double over
/// the heads that share them, and written with the last of these.
template <class C, class A>
void backward_in(const Gradients& d, const Tensor& dout_TQ, const Tensor& q_TQ, const Tensor& k_TQ, const Tensor& v_TQ,
                 const Tensor& bias_HP, const Tensor& out_TQ, const Tensor& logsumexp_TH,
                 const AttentionSegments& segments, const AttentionShape& shape) {
  const Matrix<C> dq(d.dq), dk(d.dk), dv(d.dv), dout(dout_TQ), q(q_TQ), k(k_TQ), v(v_TQ), out(out_TQ);
  const Matrix<A> lse(logsumexp_TH);
  std::vector<double> bias_sums(static_cast<std::size_t>(d.dbias.absent() ? 0 : d.dbias.rows * d.dbias.cols));
  std::vector<double> dk_sum, dv_sum;  // of the current segment and key/value head
  for_each_place(segments, shape, [&](const Place& place) {
    if (place.head % shape.sharing() == 0) {
      dk_sum.assign(std::size_t(place.keys * shape.head_dim), 0.0);
      dv_sum.assign(dk_sum.size(), 0.0);
    }
    for (std::int64_t i = 0; i < place.queries; ++i) {
      const std::int64_t row = place.q0 + i;
      const std::vector<double> score = scores<C, A>(place, i, q_TQ, k_TQ, bias_HP, shape);
      double dot_out = 0;
      std::vector<double> dq_sum(static_cast<std::size_t>(shape.head_dim));
      for (std::int64_t c = 0; c < shape.head_dim; ++c) {
        dot_out += dout(row, place.column + c) * out(row, place.column + c);
      }
      for (std::int64_t j = 0; j < place.keys; ++j) {
        const double p = std::exp(score[std::size_t(j)] - lse(row, place.head));
        double dp = 0;
        for (std::int64_t c = 0; c < shape.head_dim; ++c) {
          const double grad = dout(row, place.column + c);
          dp += grad * v(place.k0 + j, place.key_column + c);
          dv_sum[std::size_t(j * shape.head_dim + c)] += p * grad;
        }
        const double dscore = p * (dp - dot_out);
        for (std::int64_t c = 0; c < shape.head_dim; ++c) {
          dq_sum[std::size_t(c)] += double(shape.scale) * dscore * k(place.k0 + j, place.key_column + c);
          dk_sum[std::size_t(j * shape.head_dim + c)] += double(shape.scale) * dscore * q(row, place.column + c);
        }
        if (!bias_sums.empty() && p > 0) {
          bias_sums[std::size_t(place.head * d.dbias.cols + bias_column(place, i, j, d.dbias))] += dscore;
        }
      }
      for (std::int64_t c = 0; c < shape.head_dim; ++c) dq.set(row, place.column + c, dq_sum[std::size_t(c)]);
    }
    if ((place.head + 1) % shape.sharing() != 0) return;
    for (std::int64_t j = 0; j < place.keys; ++j) {
      for (std::int64_t c = 0; c < shape.head_dim; ++c) {
        dk.set(place.k0 + j, place.key_column + c, dk_sum[std::size_t(j * shape.head_dim + c)]);
        dv.set(place.k0 + j, place.key_column + c, dv_sum[std::size_t(j * shape.head_dim + c)]);
      }
    }
  });
  for (std::size_t i = 0; i < bias_sums.size(); ++i) {
    Matrix<A>(d.dbias).add(std::int64_t(i) / d.dbias.cols, std::int64_t(i) % d.dbias.cols, bias_sums[i]);
  }
}

void backward(KernelContext& /*context*/, const Tensor& dq_TQ, const Tensor& dk_TQ, const Tensor& dv_TQ,
              const Tensor& dbias_HP, const Tensor& dout_TQ, const Tensor& q_TQ, const Tensor& k_TQ, const Tensor& v_TQ,
              const Tensor& bias_HP, const Tensor& out_TQ, const Tensor& logsumexp_TH,
              const AttentionSegments& segments, const AttentionShape& shape) {
  check_attention_backward(dq_TQ, dk_TQ, dv_TQ, dbias_HP, dout_TQ, q_TQ, k_TQ, v_TQ, bias_HP, out_TQ, logsumexp_TH,
                           segments, shape);
  with_type(q_TQ.dtype, [&]<class C>(C) {
    backward_in<C, Accumulate<C>>({dq_TQ, dk_TQ, dv_TQ, dbias_HP}, dout_TQ, q_TQ, k_TQ, v_TQ, bias_HP, out_TQ,
                                  logsumexp_TH, segments, shape);
  });
}

std::size_t scratch_bytes(std::int64_t /*longest*/, DType /*compute*/, const AttentionShape& /*shape*/) { return 0; }

}  // namespace

const AttentionKernels attention_kernels{forward, backward, scratch_bytes};

}  // namespace flanmoe::reference
