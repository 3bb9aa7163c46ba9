#include "kernels/adafactor_blocks.hpp"

#include <algorithm>
#include <cmath>

#include "kernels/adafactor_block_checks.hpp"
#include "kernels/cpu/adafactor_rows.hpp"
#include "kernels/cpu/partition.hpp"
#include "kernels/scratch.hpp"

namespace flanmoe::cpu {
namespace {

void sums(KernelContext& /*context*/, const Tensor& sums, const Tensor& row_factor, const Tensor& p, const Tensor& g,
          const BlockCut& cut, const AdafactorStep& step) {
  expect_matrix(p, DType::f32, p.rows, p.cols, "p");
  expect_sums_operands(sums, row_factor, p, g, cut);
  const auto scale = float(step.gradient_scale);
  const auto* pp = p.as<float>();
  const auto* pg = g.as<float>();
  auto* rows = row_factor.as<float>();
  for_blocks(p.rows, cut.block_rows, p.cols, [&](std::int64_t b, std::int64_t begin, std::int64_t end) {
    double* const sum = sums.row<double>(b);
    std::fill(sum, sum + sums.cols, 0.0);
    for (std::int64_t i = begin; i < end; ++i) {
      const float* pi = pp + i * p.stride;
      double row_sum = 0;
      for (std::int64_t first = 0; first < g.cols; first += kTile) {
        row_sum +=
            add_squares(sum + first, pg + i * g.stride + first, scale, step.epsilon1, std::min(kTile, g.cols - first));
      }
      float& factor = rows[i * row_factor.stride];
      factor = float(step.decay * double(factor) + (1 - step.decay) * (row_sum / double(g.cols)));
      sum[g.cols] += double(factor);
      sum[g.cols + 1] += lane_sum<double>(p.cols, [=](std::int64_t j) { return square_of(pi[j]); });
    }
  });
}

/// What rows and columns of the gradient are multiplied by.
class Parts {
 public:
  Parts(ScratchScope& scratch, const Tensor& row_factor, const Tensor& col_factor, const Tensor& totals,
        const BlockCut& cut)
      : rows_(row_factor), row_mean_(totals.as<double>()[col_factor.cols] / double(cut.rows)) {
    auto* parts = scratch.take<float>(col_factor.cols);
    const auto* factors = col_factor.as<float>();
    for_pieces(1, col_factor.cols, true, [&](std::int64_t /*r*/, std::int64_t first, std::int64_t n) {
      for (std::int64_t j = first; j < first + n; ++j) parts[j] = float(1 / std::sqrt(double(factors[j])));
    });
    col_ = parts;
  }
  const float* col() const { return col_; }
  float row(std::int64_t i) const { return float(1 / std::sqrt(double(*rows_.row<float>(i)) / row_mean_)); }

 private:
  const Tensor& rows_;
  double row_mean_;
  const float* col_ = nullptr;
};

void update_sums(KernelContext& context, const Tensor& sums, const Tensor& row_factor, const Tensor& col_factor,
                 const Tensor& g, const Tensor& totals, const BlockCut& cut, const AdafactorStep& step) {
  expect_matrix(g, DType::f32, g.rows, g.cols, "g");
  expect_update_operands(row_factor, col_factor, g, totals, cut);
  expect_sums(sums, cut.blocks(g.rows), 1, "sums");
  auto* factors = col_factor.as<float>();
  const auto* col_totals = totals.as<double>();
  for_pieces(1, g.cols, true, [&](std::int64_t /*r*/, std::int64_t first, std::int64_t n) {
    for (std::int64_t j = first; j < first + n; ++j) {
      const double mean = col_totals[j] / double(cut.rows);
      factors[j] = float(step.decay * double(factors[j]) + (1 - step.decay) * mean);
    }
  });
  ScratchScope scratch(context);
  const Parts parts(scratch, row_factor, col_factor, totals, cut);
  const auto scale = float(step.gradient_scale);
  const auto* pg = g.as<float>();
  const float* col = parts.col();
  for_blocks(g.rows, cut.block_rows, g.cols, [&](std::int64_t b, std::int64_t begin, std::int64_t end) {
    double sum = 0;
    for (std::int64_t i = begin; i < end; ++i) {
      const float* gi = pg + i * g.stride;
      const float row = parts.row(i);
      sum += lane_sum<double>(g.cols, [=](std::int64_t j) { return square_of(gi[j] * scale * row * col[j]); });
    }
    sums.as<double>()[b] = sum;
  });
}

void apply(KernelContext& context, const Tensor& p, const Tensor& row_factor, const Tensor& col_factor, const Tensor& g,
           const Tensor& totals, const Tensor& update_total, const BlockCut& cut, const AdafactorStep& step) {
  expect_matrix(p, DType::f32, g.rows, g.cols, "p");
  expect_update_operands(row_factor, col_factor, g, totals, cut);
  expect_sums(update_total, 1, 1, "update_total");
  const double size = double(cut.rows) * double(p.cols);
  const double rms_u = std::sqrt(update_total.as<double>()[0] / size);
  const double rms_p = std::sqrt(totals.as<double>()[p.cols + 1] / size);
  const double alpha = step.learning_rate * (step.multiply_by_parameter_scale ? std::max(rms_p, step.epsilon2) : 1.0);
  const auto factor = float(alpha / std::max(1.0, rms_u / step.clip_threshold));
  const auto decay = float(step.learning_rate * step.weight_decay);
  ScratchScope scratch(context);
  const Parts parts(scratch, row_factor, col_factor, totals, cut);
  auto* pp = p.as<float>();
  const auto* pg = g.as<float>();
  for_blocks(p.rows, 8, p.cols, [&](std::int64_t /*b*/, std::int64_t begin, std::int64_t end) {
    for (std::int64_t i = begin; i < end; ++i) {
      apply_row(pp + i * p.stride, pg + i * g.stride, parts.col(), float(step.gradient_scale), parts.row(i), factor,
                decay, p.cols);
    }
  });
}

void add(KernelContext& /*context*/, const Tensor& totals, const Tensor& sums) {
  expect_totals(totals, sums);
  for_blocks(sums.cols, 512, sums.rows, [&](std::int64_t /*b*/, std::int64_t begin, std::int64_t end) {
    for (std::int64_t t = 0; t < totals.rows; ++t) {
      double* const total = totals.row<double>(t);
      std::fill(total + begin, total + end, 0.0);
      for (std::int64_t r = 0; r < sums.rows; ++r) {
        const double* const from = sums.row<double>(r);
#pragma omp simd
        for (std::int64_t j = begin; j < end; ++j) total[j] += from[j];
      }
    }
  });
}

std::size_t scratch_bytes(std::int64_t /*rows*/, std::int64_t cols) { return scratch_size<float>(cols); }

}  // namespace

const AdafactorBlockKernels adafactor_block_kernels = {sums, update_sums, apply, add, scratch_bytes};

}  // namespace flanmoe::cpu
