#include "kernels/optimizer.hpp"

#include <algorithm>
#include <cmath>

#include "kernels/dispatch.hpp"

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
void adamw_in(const Tensor& p, const Tensor& m, const Tensor& v, const Tensor& g, const AdamWStep& step) {
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
    weight -= A(step.learning_rate) * (update + A(step.weight_decay) * weight);
  });
}

void adamw(KernelContext& /*context*/, const Tensor& p, const Tensor& m, const Tensor& v, const Tensor& g,
           const AdamWStep& step) {
  for (const Tensor* tensor : {&m, &v, &g}) expect_like(*tensor, p, "operand");
  with_type<float, double>(p, "p", [&]<class A>(std::type_identity<A>) { adamw_in<A>(p, m, v, g, step); });
}

template <class A>
double root_mean_square(const Tensor& x) {
  double sum = 0;
  for_each_element(x, [&](std::int64_t i, std::int64_t j) { sum += double(x.row<A>(i)[j]) * double(x.row<A>(i)[j]); });
  return std::sqrt(sum / double(x.size()));
}

/// p -= alpha u / max(1, RMS(u)/clip) and the decay, with u(i, j) the unclipped update.
template <class A, class U>
void clip_and_apply(const Tensor& p, const AdafactorStep& step, U&& u) {
  double sum = 0;
  for_each_element(p, [&](std::int64_t i, std::int64_t j) { sum += double(u(i, j)) * double(u(i, j)); });
  const double rms_u = std::sqrt(sum / double(p.size()));
  const double rms_p = root_mean_square<A>(p);
  const double alpha = step.learning_rate * (step.multiply_by_parameter_scale ? std::max(rms_p, step.epsilon2) : 1.0);
  const A factor = A(alpha / std::max(1.0, rms_u / step.clip_threshold));
  const A decay = A(step.learning_rate * step.weight_decay);
  for_each_element(p, [&](std::int64_t i, std::int64_t j) {
    A& weight = p.row<A>(i)[j];
    weight -= factor * u(i, j) + decay * weight;
  });
}

template <class A>
void factored_in(const Tensor& p, const Tensor& row_factor, const Tensor& col_factor, const Tensor& g,
                 const AdafactorStep& step) {
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
  clip_and_apply<A>(p, step, [&](std::int64_t i, std::int64_t j) {
    const double row_part = 1 / std::sqrt(double(*row_factor.row<A>(i)) / row_mean);
    const double col_part = 1 / std::sqrt(double(col_factor.as<A>()[j]));
    return gradient(i, j) * A(row_part) * A(col_part);
  });
}

void adafactor_factored(KernelContext& /*context*/, const Tensor& p, const Tensor& row_factor, const Tensor& col_factor,
                        const Tensor& g, const AdafactorStep& step) {
  expect_like(g, p, "g");
  expect_matrix(row_factor, p.dtype, p.rows, 1, "row_factor");
  expect_matrix(col_factor, p.dtype, 1, p.cols, "col_factor");
  if (p.size() == 0) return;
  with_type<float, double>(p, "p",
                           [&]<class A>(std::type_identity<A>) { factored_in<A>(p, row_factor, col_factor, g, step); });
}

template <class A>
void full_in(const Tensor& p, const Tensor& v, const Tensor& g, const AdafactorStep& step) {
  const auto gradient = [&](std::int64_t i, std::int64_t j) { return g.row<A>(i)[j] * A(step.gradient_scale); };
  for_each_element(p, [&](std::int64_t i, std::int64_t j) {
    A& moment = v.row<A>(i)[j];
    moment = A(step.decay) * moment + A(1 - step.decay) * (gradient(i, j) * gradient(i, j) + A(step.epsilon1));
  });
  clip_and_apply<A>(p, step,
                    [&](std::int64_t i, std::int64_t j) { return gradient(i, j) / std::sqrt(v.row<A>(i)[j]); });
}

void adafactor_full(KernelContext& /*context*/, const Tensor& p, const Tensor& v, const Tensor& g,
                    const AdafactorStep& step) {
  expect_like(g, p, "g");
  expect_like(v, p, "v");
  if (p.size() == 0) return;
  with_type<float, double>(p, "p", [&]<class A>(std::type_identity<A>) { full_in<A>(p, v, g, step); });
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

double sum_of_squares(KernelContext& /*context*/, const Tensor& x) {
  double sum = 0;
  with_type<float, bf16, double>(x, "x", [&]<class C>(std::type_identity<C>) {
    const auto flat = x.flat<C>();
    std::int64_t blocks = 1;
    while (blocks * kBlock < std::int64_t(flat.size())) blocks *= 2;
    sum = tree_sum(flat.data(), std::int64_t(flat.size()), 0, blocks);
  });
  return sum;
}

std::size_t scratch_bytes(std::int64_t /*rows*/, std::int64_t /*cols*/) { return 0; }

}  // namespace

const OptimizerKernels optimizer_kernels = {adamw,   adafactor_factored, adafactor_full,
                                            balance, sum_of_squares,     scratch_bytes};

}  // namespace flanmoe::reference
