#include "kernels/adafactor_blocks.hpp"

#include <algorithm>
#include <cmath>

#include "kernels/adafactor_block_checks.hpp"

namespace flanmoe::reference {
namespace {

template <class A>
void sums_in(const Tensor& sums, const Tensor& row_factor, const Tensor& p, const Tensor& g, const BlockCut& cut,
             const AdafactorStep& step) {
  for (std::int64_t b = 0; b < sums.rows; ++b) {
    double* const sum = sums.row<double>(b);
    std::fill(sum, sum + sums.cols, 0.0);
    for (std::int64_t i = b * cut.block_rows; i < std::min(p.rows, (b + 1) * cut.block_rows); ++i) {
      double row_sum = 0;
      for (std::int64_t j = 0; j < p.cols; ++j) {
        const A gradient = g.row<A>(i)[j] * A(step.gradient_scale);
        const double square = double(gradient) * double(gradient) + step.epsilon1;
        row_sum += square;
        sum[j] += square;
        sum[p.cols + 1] += double(p.row<A>(i)[j]) * double(p.row<A>(i)[j]);
      }
      A& factor = *row_factor.row<A>(i);
      factor = A(step.decay * double(factor) + (1 - step.decay) * row_sum / double(p.cols));
      sum[p.cols] += double(factor);
    }
  }
}

void sums(KernelContext& /*context*/, const Tensor& sums, const Tensor& row_factor, const Tensor& p, const Tensor& g,
          const BlockCut& cut, const AdafactorStep& step) {
  expect_sums_operands(sums, row_factor, p, g, cut);
  with_type<float, double>(p, "p",
                           [&]<class A>(std::type_identity<A>) { sums_in<A>(sums, row_factor, p, g, cut, step); });
}

/// u of element (i, j) before clipping.
template <class A>
A update_of(const Tensor& row_factor, const Tensor& col_factor, const Tensor& g, const Tensor& totals,
            const BlockCut& cut, const AdafactorStep& step, std::int64_t i, std::int64_t j) {
  const double row_mean = totals.as<double>()[g.cols] / double(cut.rows);
  const double row_part = 1 / std::sqrt(double(*row_factor.row<A>(i)) / row_mean);
  const double col_part = 1 / std::sqrt(double(col_factor.as<A>()[j]));
  return g.row<A>(i)[j] * A(step.gradient_scale) * A(row_part) * A(col_part);
}

void update_sums(KernelContext& /*context*/, const Tensor& sums, const Tensor& row_factor, const Tensor& col_factor,
                 const Tensor& g, const Tensor& totals, const BlockCut& cut, const AdafactorStep& step) {
  expect_update_operands(row_factor, col_factor, g, totals, cut);
  expect_sums(sums, cut.blocks(g.rows), 1, "sums");
  with_type<float, double>(g, "g", [&]<class A>(std::type_identity<A>) {
    for (std::int64_t j = 0; j < g.cols; ++j) {
      A& factor = col_factor.as<A>()[j];
      factor = A(step.decay * double(factor) + (1 - step.decay) * totals.as<double>()[j] / double(cut.rows));
    }
    for (std::int64_t b = 0; b < sums.rows; ++b) {
      double sum = 0;
      for (std::int64_t i = b * cut.block_rows; i < std::min(g.rows, (b + 1) * cut.block_rows); ++i) {
        for (std::int64_t j = 0; j < g.cols; ++j) {
          const auto u = double(update_of<A>(row_factor, col_factor, g, totals, cut, step, i, j));
          sum += u * u;
        }
      }
      sums.as<double>()[b] = sum;
    }
  });
}

void apply(KernelContext& /*context*/, const Tensor& p, const Tensor& row_factor, const Tensor& col_factor,
           const Tensor& g, const Tensor& totals, const Tensor& update_total, const BlockCut& cut,
           const AdafactorStep& step) {
  expect_update_operands(row_factor, col_factor, g, totals, cut);
  expect_like(p, g, "p");
  expect_sums(update_total, 1, 1, "update_total");
  const double size = double(cut.rows) * double(p.cols);
  const double rms_u = std::sqrt(update_total.as<double>()[0] / size);
  const double rms_p = std::sqrt(totals.as<double>()[p.cols + 1] / size);
  const double alpha = step.learning_rate * (step.multiply_by_parameter_scale ? std::max(rms_p, step.epsilon2) : 1.0);
  with_type<float, double>(p, "p", [&]<class A>(std::type_identity<A>) {
    const A factor = A(alpha / std::max(1.0, rms_u / step.clip_threshold));
    const A decay = A(step.learning_rate * step.weight_decay);
    for (std::int64_t i = 0; i < p.rows; ++i) {
      for (std::int64_t j = 0; j < p.cols; ++j) {
        A& weight = p.row<A>(i)[j];
        weight -= factor * update_of<A>(row_factor, col_factor, g, totals, cut, step, i, j) + decay * weight;
      }
    }
  });
}

void add(KernelContext& /*context*/, const Tensor& totals, const Tensor& sums) {
  expect_totals(totals, sums);
  for (std::int64_t j = 0; j < sums.cols; ++j) {
    double sum = 0;
    for (std::int64_t b = 0; b < sums.rows; ++b) sum += sums.row<double>(b)[j];
    for (std::int64_t t = 0; t < totals.rows; ++t) totals.row<double>(t)[j] = sum;
  }
}

std::size_t scratch_bytes(std::int64_t /*rows*/, std::int64_t /*cols*/) { return 0; }

}  // namespace

const AdafactorBlockKernels adafactor_block_kernels = {sums, update_sums, apply, add, scratch_bytes};

}  // namespace flanmoe::reference
