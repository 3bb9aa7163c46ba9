#include "kernels/optimizer.hpp"

#include <array>
#include <bit>
#include <cmath>

#include "kernels/cpu/adafactor_rows.hpp"
#include "kernels/cpu/partition.hpp"
#include "kernels/cpu/philox_words.hpp"
#include "kernels/cpu/vector_math.hpp"
#include "kernels/dispatch.hpp"
#include "kernels/elementwise.hpp"
#include "kernels/optimizer_checks.hpp"
#include "kernels/scratch.hpp"

namespace flanmoe::cpu {
namespace {

struct AdamWFactors {
  float gradient, beta1, rest1, beta2, rest2, bias1, bias2, epsilon, rate, decay;
};

void adamw_piece(float* p, float* m, float* v, const float* g, const AdamWFactors& f, std::int64_t n) {
  const AdamWFactors a = f;
#pragma omp simd
  for (std::int64_t i = 0; i < n; ++i) {
    const float gradient = g[i] * a.gradient;
    const float mean = a.beta1 * m[i] + a.rest1 * gradient;
    const float square = a.beta2 * v[i] + a.rest2 * gradient * gradient;
    m[i] = mean;
    v[i] = square;
    const float update = (mean / a.bias1) / (std::sqrt(square / a.bias2) + a.epsilon);
    p[i] -= a.rate * (update + a.decay * p[i]);
  }
}

void update_adamw(const AdamWMatrix& matrix, AdamWFactors factors) {
  const Tensor &p = matrix.p, &m = matrix.m, &v = matrix.v, &g = matrix.g;
  expect_matrix(p, DType::f32, p.rows, p.cols, "p");
  expect_operands(matrix);
  if (!matrix.decays) factors.decay = 0;
  auto* pp = p.as<float>();
  auto* pm = m.as<float>();
  auto* pv = v.as<float>();
  const auto* pg = g.as<float>();
  const std::int64_t p_stride = p.stride, m_stride = m.stride, v_stride = v.stride, g_stride = g.stride;
  const bool contiguous = p.contiguous() && m.contiguous() && v.contiguous() && g.contiguous();
  for_pieces(p.rows, p.cols, contiguous, [&](std::int64_t r, std::int64_t first, std::int64_t n) {
    adamw_piece(pp + r * p_stride + first, pm + r * m_stride + first, pv + r * v_stride + first,
                pg + r * g_stride + first, factors, n);
  });
}

void adamw(KernelContext& /*context*/, std::span<const AdamWMatrix> matrices, const AdamWStep& s) {
  const AdamWFactors factors = {float(s.gradient_scale),
                                float(s.beta1),
                                float(1 - s.beta1),
                                float(s.beta2),
                                float(1 - s.beta2),
                                float(1 - std::pow(s.beta1, double(s.step + 1))),
                                float(1 - std::pow(s.beta2, double(s.step + 1))),
                                float(s.epsilon),
                                float(s.learning_rate),
                                float(s.weight_decay)};
  for (const AdamWMatrix& matrix : matrices) update_adamw(matrix, factors);
}

/// p -= factor * u + decay * p with the factor of the clipped update, from the sums of u^2 and of p^2.
struct Application {
  float factor, decay;

  Application(const AdafactorStep& step, bool decays, double sum_u, double sum_p, std::int64_t n) {
    const double rms_u = std::sqrt(sum_u / double(n));
    const double rms_p = std::sqrt(sum_p / double(n));
    const double alpha = step.learning_rate * (step.multiply_by_parameter_scale ? std::max(rms_p, step.epsilon2) : 1.0);
    factor = float(alpha / std::max(1.0, rms_u / step.clip_threshold));
    decay = decays ? float(step.learning_rate * step.weight_decay) : 0.0F;
  }
};

// ---- factored second moment -------------------------------------------------------------------------------------

// A matrix is cut into at most this many blocks of rows; each sums g^2 over its rows, and blocks are added in order.
constexpr std::int64_t kBlocks = 16;
constexpr std::int64_t kSmallestBlock = 32;

std::int64_t count_blocks(std::int64_t rows) {
  const std::int64_t size = block_rows(rows, kBlocks, kSmallestBlock);
  return (rows + size - 1) / size;
}

/// Updates row_factor and col_factor and leaves rsqrt(col_factor) in col_part.
void update_factors(double* partial, float* col_part, const Tensor& row_factor, const Tensor& col_factor,
                    const Tensor& g, const AdafactorStep& step) {
  const auto scale = float(step.gradient_scale);
  const auto blend = [&](float& factor, double mean) {
    factor = float(step.decay * double(factor) + (1 - step.decay) * mean);
  };
  const auto* pg = g.as<float>();
  auto* rows = row_factor.as<float>();
  auto* cols = col_factor.as<float>();
  const std::int64_t size = block_rows(g.rows, kBlocks, kSmallestBlock);
  for_blocks(g.rows, size, g.cols, [&](std::int64_t b, std::int64_t begin, std::int64_t end) {
    double* col_sum = partial + b * g.cols;
    std::fill(col_sum, col_sum + g.cols, 0.0);
    for (std::int64_t i = begin; i < end; ++i) {
      double sum = 0;
      for (std::int64_t first = 0; first < g.cols; first += kTile) {
        sum += add_squares(col_sum + first, pg + i * g.stride + first, scale, step.epsilon1,
                           std::min(kTile, g.cols - first));
      }
      blend(rows[i * row_factor.stride], sum / double(g.cols));
    }
  });
  for_pieces(1, g.cols, true, [&](std::int64_t /*r*/, std::int64_t first, std::int64_t n) {
    for (std::int64_t j = first; j < first + n; ++j) {
      double sum = 0;
      for (std::int64_t b = 0; b < count_blocks(g.rows); ++b) sum += partial[b * g.cols + j];
      blend(cols[j], sum / double(g.rows));
      col_part[j] = float(1 / std::sqrt(double(cols[j])));
    }
  });
}

void update_factored(KernelContext& context, const AdafactorMatrix& matrix, const AdafactorStep& step) {
  const Tensor &p = matrix.p, &g = matrix.g, &row_factor = matrix.row_factor, &col_factor = matrix.col_factor;
  ScratchScope scratch(context);
  auto* partial = scratch.take<double>(count_blocks(p.rows) * p.cols);
  auto* col_part = scratch.take<float>(p.cols);
  update_factors(partial, col_part, row_factor, col_factor, g, step);

  const auto* rows = row_factor.as<float>();
  const auto scale = float(step.gradient_scale);
  double row_sum = 0;
  for (std::int64_t i = 0; i < p.rows; ++i) row_sum += double(rows[i * row_factor.stride]);
  const double row_mean = row_sum / double(p.rows);
  const auto row_part = [&](std::int64_t i) {
    return float(1 / std::sqrt(double(rows[i * row_factor.stride]) / row_mean));
  };
  auto* pp = p.as<float>();
  const auto* pg = g.as<float>();
  const auto sums = parallel_tree_sum<2>(p.rows, p.cols, [&](std::int64_t i) -> std::array<double, 2> {
    const float* gi = pg + i * g.stride;
    const float* pi = pp + i * p.stride;
    const float ri = row_part(i);
    return {lane_sum<double>(p.cols, [=](std::int64_t j) { return square_of(gi[j] * scale * ri * col_part[j]); }),
            lane_sum<double>(p.cols, [=](std::int64_t j) { return square_of(pi[j]); })};
  });
  const Application application(step, matrix.decays, sums[0], sums[1], p.size());
  for_blocks(p.rows, 8, p.cols, [&](std::int64_t /*b*/, std::int64_t begin, std::int64_t end) {
    for (std::int64_t i = begin; i < end; ++i) {
      apply_row(pp + i * p.stride, pg + i * g.stride, col_part, scale, row_part(i), application.factor,
                application.decay, p.cols);
    }
  });
}

// ---- full second moment -----------------------------------------------------------------------------------------

constexpr std::int64_t kLeaf = 4096;  // elements of one leaf of a tree sum

void update_moment(float* v, const float* g, float scale, float decay, float rest, float epsilon, std::int64_t n) {
#pragma omp simd
  for (std::int64_t i = 0; i < n; ++i) {
    const float gradient = g[i] * scale;
    v[i] = decay * v[i] + rest * (gradient * gradient + epsilon);
  }
}

void apply_full(float* p, const float* v, const float* g, float scale, Application a, std::int64_t n) {
#pragma omp simd
  for (std::int64_t i = 0; i < n; ++i) p[i] -= a.factor * (g[i] * scale / std::sqrt(v[i])) + a.decay * p[i];
}

void update_full(const AdafactorMatrix& matrix, const AdafactorStep& step) {
  const auto flat_p = matrix.p.flat<float>();
  const auto flat_v = matrix.v.flat<float>();
  const auto flat_g = matrix.g.flat<float>();
  const auto scale = float(step.gradient_scale);
  const std::int64_t n = matrix.p.size();
  const auto sums = parallel_tree_sum<2>((n + kLeaf - 1) / kLeaf, kLeaf, [&](std::int64_t leaf) {
    const std::int64_t first = leaf * kLeaf;
    const std::int64_t count = std::min(kLeaf, n - first);
    const float* pi = flat_p.data() + first;
    const float* gi = flat_g.data() + first;
    float* vi = flat_v.data() + first;
    update_moment(vi, gi, scale, float(step.decay), float(1 - step.decay), float(step.epsilon1), count);
    return std::array<double, 2>{
        lane_sum<double>(count, [=](std::int64_t i) { return square_of(gi[i] * scale / std::sqrt(vi[i])); }),
        lane_sum<double>(count, [=](std::int64_t i) { return square_of(pi[i]); })};
  });
  const Application application(step, matrix.decays, sums[0], sums[1], n);
  for_pieces(1, n, true, [&](std::int64_t /*r*/, std::int64_t first, std::int64_t count) {
    apply_full(flat_p.data() + first, flat_v.data() + first, flat_g.data() + first, scale, application, count);
  });
}

void adafactor(KernelContext& context, std::span<const AdafactorMatrix> matrices, const AdafactorStep& step) {
  for (const AdafactorMatrix& matrix : matrices) {
    expect_matrix(matrix.p, DType::f32, matrix.p.rows, matrix.p.cols, "p");
    expect_operands(matrix);
    if (matrix.p.size() == 0) continue;
    is_factored(matrix) ? update_factored(context, matrix, step) : update_full(matrix, step);
  }
}

// ---- balance, sums, weights -------------------------------------------------------------------------------------

void balance(KernelContext& /*context*/, const Tensor& b, const Tensor& count, double rate) {
  expect_matrix(b, b.dtype, 1, count.cols, "b");
  expect_like(count, b, "count");
  with_type<float, double>(b, "b", [&]<class A>(std::type_identity<A>) {
    double sum = 0;
    for (const A n : count.flat<A>()) sum += double(n);
    for (std::int64_t e = 0; e < b.cols; ++e) {
      const double more = double(count.as<A>()[e]) * double(b.cols) - sum;  // whole numbers: exact
      if (more != 0) b.as<A>()[e] += A(more > 0 ? -rate : rate);
    }
  });
}

double sum_of_squares(const Tensor& x) {
  double sum = 0;
  with_type<float, bf16>(x, "x", [&]<class C>(std::type_identity<C>) {
    const auto flat = x.flat<C>();
    const auto n = std::int64_t(flat.size());
    const auto sums = parallel_tree_sum<1>((n + kLeaf - 1) / kLeaf, kLeaf, [&](std::int64_t leaf) {
      const C* at = flat.data() + leaf * kLeaf;
      return std::array<double, 1>{
          lane_sum<double>(std::min(kLeaf, n - leaf * kLeaf), [=](std::int64_t i) { return square_of(widen(at[i])); })};
    });
    sum = sums[0];
  });
  return sum;
}

void sums_of_squares(KernelContext& /*context*/, std::span<double> sums, std::span<const Tensor> x) {
  FLANMOE_EXPECT(sums.size() == x.size(), "{} sums of {} tensors", sums.size(), x.size());
  for (std::size_t i = 0; i < x.size(); ++i) sums[i] = sum_of_squares(x[i]);
}

/// `n` elements from number `first` of a matrix on; `key` is the Philox key.
void round_piece(bf16* to, const float* from, std::array<std::uint32_t, 2> key, const WeightCopy& copy,
                 std::int64_t first, std::int64_t n) {
  constexpr std::int64_t kChunk = 8 * kPhiloxLanes;  // elements of one group of blocks
  std::array<std::uint32_t, 4 * kPhiloxLanes> words{};
  for (std::int64_t begin = first / 8 * 8; begin < first + n; begin += kChunk) {
    philox_words(words.data(), key, copy.parameter, copy.expert, std::uint32_t(begin / 8), kPhiloxLanes);
    const std::int64_t low = std::max(begin, first), high = std::min(begin + kChunk, first + n);
#pragma omp simd
    for (std::int64_t i = low; i < high; ++i) {
      const std::uint32_t word = words[std::size_t((i - begin) / 2)];
      const auto u = std::bit_cast<std::uint32_t>(from[i - first]);
      const std::uint32_t carried = (u + (word >> (16 * (i & 1)) & 0xffffU)) >> 16U;
      const bool is_nan = (u & 0x7fffffffU) > 0x7f800000U;
      to[i - first].bits = is_nan ? std::uint16_t((u >> 16U) | 0x40U) : std::uint16_t(carried);
    }
  }
}

void write_weights(KernelContext& context, std::span<const WeightCopy> copies, const RandomKey* rounding) {
  for (const WeightCopy& copy : copies) {
    if (!rounds_at_random(copy, rounding)) {
      elementwise_kernels.convert(context, copy.to, copy.from);
      continue;
    }
    const auto key = rounding->philox_key();
    auto* to = copy.to.as<bf16>();
    const auto* from = copy.from.as<float>();
    const bool contiguous = copy.to.contiguous() && copy.from.contiguous();
    for_pieces(copy.to.rows, copy.to.cols, contiguous, [&](std::int64_t r, std::int64_t first, std::int64_t n) {
      round_piece(to + r * copy.to.stride + first, from + r * copy.from.stride + first, key, copy,
                  copy.first + r * copy.to.cols + first, n);
    });
  }
}

std::size_t scratch_bytes(std::int64_t rows, std::int64_t cols) {
  return scratch_size<double>(count_blocks(rows) * cols) + scratch_size<float>(cols);
}

}  // namespace

const OptimizerKernels optimizer_kernels = {adamw, adafactor, balance, sums_of_squares, write_weights, scratch_bytes};

}  // namespace flanmoe::cpu
