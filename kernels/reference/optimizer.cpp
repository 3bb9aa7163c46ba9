#include "kernels/optimizer.hpp"

#include <algorithm>
#include <bit>
#include <cmath>

#include "kernels/dispatch.hpp"
#include "kernels/elementwise.hpp"
#include "kernels/optimizer_checks.hpp"

namespace flanmoe::reference {
namespace {

/// Calls f(i, j) for every element.
template <class F>
void for_each_element(const Tensor& shape, F&& f) {
  for (std::int64_t i = 0; i < shape.rows; ++i) {
    for (std::int64_t j = 0; j < shape.cols; ++j) f(i, j);
  }
}

template <class A>
void adamw_in(const AdamWMatrix& matrix, const AdamWStep& step) {
  const Tensor &p = matrix.p, &m = matrix.m, &v = matrix.v, &g = matrix.g;
  const A decay = matrix.decays ? A(step.weight_decay) : A(0);
  const double bias1 = 1 - std::pow(step.beta1, double(step.step + 1));
  const double bias2 = 1 - std::pow(step.beta2, double(step.step + 1));
  for_each_element(p, [&](std::int64_t i, std::int64_t j) {
    const A gradient = g.row<A>(i)[j] * A(step.gradient_scale);
    A& mean = m.row<A>(i)[j];
    A& square = v.row<A>(i)[j];
    A& weight = p.row<A>(i)[j];
    mean = A(step.beta1) * mean + A(1 - step.beta1) * gradient;
    square = A(step.beta2) * square + A(1 - step.beta2) * gradient * gradient;
    const A update = (mean / A(bias1)) / (std::sqrt(square / A(bias2)) + A(step.epsilon));
    weight -= A(step.learning_rate) * (update + decay * weight);
  });
}

void adamw(KernelContext& /*context*/, std::span<const AdamWMatrix> matrices, const AdamWStep& step) {
  for (const AdamWMatrix& matrix : matrices) {
    expect_operands(matrix);
    with_type<float, double>(matrix.p, "p", [&]<class A>(std::type_identity<A>) { adamw_in<A>(matrix, step); });
  }
}

template <class A>
double root_mean_square(const Tensor& x) {
  double sum = 0;
  for_each_element(x, [&](std::int64_t i, std::int64_t j) { sum += double(x.row<A>(i)[j]) * double(x.row<A>(i)[j]); });
  return std::sqrt(sum / double(x.size()));
}

/// p -= alpha u / max(1, RMS(u)/clip) and the decay, with u(i, j) the unclipped update.
template <class A, class U>
void clip_and_apply(const Tensor& p, bool decays, const AdafactorStep& step, U&& u) {
  double sum = 0;
  for_each_element(p, [&](std::int64_t i, std::int64_t j) { sum += double(u(i, j)) * double(u(i, j)); });
  const double rms_u = std::sqrt(sum / double(p.size()));
  const double rms_p = root_mean_square<A>(p);
  const double alpha = step.learning_rate * (step.multiply_by_parameter_scale ? std::max(rms_p, step.epsilon2) : 1.0);
  const A factor = A(alpha / std::max(1.0, rms_u / step.clip_threshold));
  const A decay = decays ? A(step.learning_rate * step.weight_decay) : A(0);
  for_each_element(p, [&](std::int64_t i, std::int64_t j) {
    A& weight = p.row<A>(i)[j];
    weight -= factor * u(i, j) + decay * weight;
  });
}

template <class A>
void factored_in(const AdafactorMatrix& matrix, const AdafactorStep& step) {
  const Tensor &p = matrix.p, &g = matrix.g, &row_factor = matrix.row_factor, &col_factor = matrix.col_factor;
  const auto gradient = [&](std::int64_t i, std::int64_t j) { return g.row<A>(i)[j] * A(step.gradient_scale); };
  const auto square = [&](std::int64_t i, std::int64_t j) {
    return double(gradient(i, j)) * double(gradient(i, j)) + step.epsilon1;
  };
  const auto blend = [&](A& factor, double mean) { factor = A(step.decay * double(factor) + (1 - step.decay) * mean); };
  for (std::int64_t i = 0; i < p.rows; ++i) {
    double sum = 0;
    for (std::int64_t j = 0; j < p.cols; ++j) sum += square(i, j);
    blend(*row_factor.row<A>(i), sum / double(p.cols));
  }
  for (std::int64_t j = 0; j < p.cols; ++j) {
    double sum = 0;
    for (std::int64_t i = 0; i < p.rows; ++i) sum += square(i, j);
    blend(col_factor.as<A>()[j], sum / double(p.rows));
  }
  double row_sum = 0;
  for (std::int64_t i = 0; i < p.rows; ++i) row_sum += double(*row_factor.row<A>(i));
  const double row_mean = row_sum / double(p.rows);
  clip_and_apply<A>(p, matrix.decays, step, [&](std::int64_t i, std::int64_t j) {
    const double row_part = 1 / std::sqrt(double(*row_factor.row<A>(i)) / row_mean);
    const double col_part = 1 / std::sqrt(double(col_factor.as<A>()[j]));
    return gradient(i, j) * A(row_part) * A(col_part);
  });
}

template <class A>
void full_in(const AdafactorMatrix& matrix, const AdafactorStep& step) {
  const Tensor &p = matrix.p, &g = matrix.g, &v = matrix.v;
  const auto gradient = [&](std::int64_t i, std::int64_t j) { return g.row<A>(i)[j] * A(step.gradient_scale); };
  for_each_element(p, [&](std::int64_t i, std::int64_t j) {
    A& moment = v.row<A>(i)[j];
    moment = A(step.decay) * moment + A(1 - step.decay) * (gradient(i, j) * gradient(i, j) + A(step.epsilon1));
  });
  clip_and_apply<A>(p, matrix.decays, step,
                    [&](std::int64_t i, std::int64_t j) { return gradient(i, j) / std::sqrt(v.row<A>(i)[j]); });
}

void adafactor(KernelContext& /*context*/, std::span<const AdafactorMatrix> matrices, const AdafactorStep& step) {
  for (const AdafactorMatrix& matrix : matrices) {
    expect_operands(matrix);
    if (matrix.p.size() == 0) continue;
    with_type<float, double>(matrix.p, "p", [&]<class A>(std::type_identity<A>) {
      is_factored(matrix) ? factored_in<A>(matrix, step) : full_in<A>(matrix, step);
    });
  }
}

constexpr std::int64_t kBlock = 4096;

/// Blocks [first, first+count) with count a power of two; blocks past the end count as zero.
template <class C>
double tree_sum(const C* x, std::int64_t n, std::int64_t first, std::int64_t count) {
  if (first * kBlock >= n) return 0;
  if (count > 1) return tree_sum(x, n, first, count / 2) + tree_sum(x, n, first + count / 2, count / 2);
  double sum = 0;
  for (std::int64_t i = first * kBlock; i < std::min(n, (first + 1) * kBlock); ++i) {
    sum += double(widen(x[i])) * double(widen(x[i]));
  }
  return sum;
}

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
  with_type<float, bf16, double>(x, "x", [&]<class C>(std::type_identity<C>) {
    const auto flat = x.flat<C>();
    std::int64_t blocks = 1;
    while (blocks * kBlock < std::int64_t(flat.size())) blocks *= 2;
    sum = tree_sum(flat.data(), std::int64_t(flat.size()), 0, blocks);
  });
  return sum;
}

void sums_of_squares(KernelContext& /*context*/, std::span<double> sums, std::span<const Tensor> x) {
  FLANMOE_EXPECT(sums.size() == x.size(), "{} sums of {} tensors", sums.size(), x.size());
  for (std::size_t i = 0; i < x.size(); ++i) sums[i] = sum_of_squares(x[i]);
}

/// Up when the lower half and 16 random bits carry into the upper one.
bf16 round_at_random(float x, std::uint32_t bits) {
  if (std::isnan(x)) return bf16(x);
  bf16 y;
  y.bits = std::uint16_t((std::bit_cast<std::uint32_t>(x) + (bits & 0xffffU)) >> 16U);
  return y;
}

void write_weights(KernelContext& context, std::span<const WeightCopy> copies, const RandomKey* rounding) {
  for (const WeightCopy& copy : copies) {
    if (!rounds_at_random(copy, rounding)) {
      elementwise_kernels.convert(context, copy.to, copy.from);
      continue;
    }
    for_each_element(copy.to, [&](std::int64_t i, std::int64_t j) {
      const std::int64_t element = copy.first + i * copy.to.cols + j;
      const auto words = rounding->words(copy.parameter, copy.expert, std::uint32_t(element / 8));
      const std::uint32_t word = words[std::size_t(element % 8 / 2)];
      copy.to.row<bf16>(i)[j] = round_at_random(copy.from.row<float>(i)[j], element % 2 == 0 ? word : word >> 16U);
    });
  }
}

std::size_t scratch_bytes(std::int64_t /*rows*/, std::int64_t /*cols*/) { return 0; }

}  // namespace

const OptimizerKernels optimizer_kernels = {adamw, adafactor, balance, sums_of_squares, write_weights, scratch_bytes};

}  // namespace flanmoe::reference
