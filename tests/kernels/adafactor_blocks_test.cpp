#include "kernels/adafactor_blocks.hpp"

#include <algorithm>
#include <array>
#include <vector>

#include "kernels/cuda_tables.hpp"
#include "kernels/kernel_test.hpp"
#include "kernels/thread_test.hpp"

namespace flanmoe {
namespace {

using test::Buffer;
using test::TestContext;

std::vector<test::Implementation<AdafactorBlockKernels>> devices() {
  const auto all =
      test::devices_of(reference::adafactor_block_kernels, cpu::adafactor_block_kernels, test::cuda_adafactor_blocks);
  return {all.begin(), all.end()};
}

/// A matrix of a model with its factors.
struct Matrix {
  Matrix(DType a, std::int64_t rows, std::int64_t cols, std::int64_t padding = 0)
      : p(a, rows, cols, padding), g(a, rows, cols, padding), row(a, rows, 1), col(a, 1, cols) {
    p.randomize(1, 0.05);
    row.fill(0);
    col.fill(0);
  }
  /// Gradients of very different rows and columns, growing, so that clipping is at work.
  void set_gradient(std::int64_t step) {
    const std::int64_t cols = g.view().cols;
    g.randomize(10 + std::uint64_t(step), std::pow(3.0, double(step)));
    for (std::int64_t i = 0; i < g.view().size(); ++i)
      g.set(i, g.get(i) * double(1 + i / cols % 3) * double(1 + i % 5));
  }
  Buffer p, g, row, col;
};

AdafactorStep step_of(std::int64_t step) {
  return {.learning_rate = 0.01,
          .decay = 1 - std::pow(double(step + 1), -0.8),
          .weight_decay = 0.1,
          .gradient_scale = step == 1 ? 0.25 : 1.0};
}

/// One step of a matrix whose pieces end at the given rows; every piece has a column factor of its own.
void update(const AdafactorBlockKernels& k, KernelContext& context, Matrix& x, std::int64_t block_rows,
            const std::vector<std::int64_t>& ends, const AdafactorStep& step) {
  const Tensor p = x.p.view(), g = x.g.view(), row = x.row.view();
  const BlockCut cut{p.rows, block_rows};
  const std::int64_t blocks = cut.blocks(p.rows);
  Buffer sums(DType::f64, blocks, p.cols + 2), totals(DType::f64, 2, p.cols + 2);
  Buffer update_sums(DType::f64, blocks, 1), update_total(DType::f64, 1, 1);
  std::vector<Buffer> cols;
  const auto for_pieces = [&](auto&& f) {
    std::int64_t first = 0;
    for (std::size_t i = 0; i < ends.size(); ++i) {
      f(i, first, ends[i] - first, first / block_rows, cut.blocks(ends[i] - first));
      first = ends[i];
    }
  };
  for_pieces([&](std::size_t /*i*/, std::int64_t first, std::int64_t rows, std::int64_t block, std::int64_t count) {
    cols.emplace_back(p.dtype, 1, p.cols);
    cols.back().copy_from(x.col);
    k.sums(context, sums.view().slice_rows(block, count), row.slice_rows(first, rows), p.slice_rows(first, rows),
           g.slice_rows(first, rows), cut, step);
  });
  k.add(context, totals, sums);
  const Tensor total = totals.view().slice_rows(1, 1);
  for_pieces([&](std::size_t i, std::int64_t first, std::int64_t rows, std::int64_t block, std::int64_t count) {
    k.update_sums(context, update_sums.view().slice_rows(block, count), row.slice_rows(first, rows), cols[i],
                  g.slice_rows(first, rows), total, cut, step);
  });
  k.add(context, update_total, update_sums);
  for_pieces([&](std::size_t i, std::int64_t first, std::int64_t rows, std::int64_t /*block*/, std::int64_t /*count*/) {
    k.apply(context, p.slice_rows(first, rows), row.slice_rows(first, rows), cols[i], g.slice_rows(first, rows), total,
            update_total, cut, step);
    EXPECT_TRUE(same_bits(cols[i], cols[0])) << "piece " << i;
  });
  x.col.copy_from(cols[0]);
}

TEST(AdafactorBlocks, FollowTheUpdateOfTheWholeMatrixOverSteps) {
  for (const DType a : {DType::f32, DType::f64}) {
    for (const auto& device : devices()) {
      if (a == DType::f64 && device.device != "reference") continue;  // doubles are served by the reference
      for (const auto& [rows, cols, block] : {std::tuple{5, 3, 2}, {33, 70, 8}, {150, 37, 150}, {200, 2500, 70}}) {
        TestContext context;
        Matrix x(a, rows, cols, 2), y(a, rows, cols);
        for (std::int64_t step = 0; step < 3; ++step) {
          x.set_gradient(step);
          y.set_gradient(step);
          update(device.kernels, context, x, block, {rows}, step_of(step));
          reference::optimizer_kernels.adafactor(context, std::array{AdafactorMatrix{y.p, y.g, y.row, y.col, {}}},
                                                 step_of(step));
        }
        const double tolerance = a == DType::f64 ? 1e-13 : 1e-6;
        test::expect_close(x.p, y.p, tolerance, device.device);
        test::expect_close(x.row, y.row, tolerance, device.device + " row factor");
        test::expect_close(x.col, y.col, tolerance, device.device + " column factor");
      }
    }
  }
}

TEST(AdafactorBlocks, TheRateFollowsTheParameterOrNot) {
  for (const auto& device : devices()) {
    for (const bool by_parameter : {true, false}) {
      TestContext context;
      Matrix x(DType::f32, 20, 30), y(DType::f32, 20, 30);
      x.set_gradient(0);
      y.set_gradient(0);
      const AdafactorStep step = {
          .learning_rate = 0.2, .clip_threshold = 0.5, .multiply_by_parameter_scale = by_parameter};
      update(device.kernels, context, x, 7, {20}, step);
      reference::optimizer_kernels.adafactor(context, std::array{AdafactorMatrix{y.p, y.g, y.row, y.col, {}}}, step);
      test::expect_close(x.p, y.p, 1e-6, device.device);
    }
  }
}

TEST(AdafactorBlocks, BitsDoNotDependOnThePieces) {
  for (const auto& device : devices()) {
    TestContext context;
    Matrix whole(DType::f32, 333, 1300, 2), cut(DType::f32, 333, 1300, 2);
    for (std::int64_t step = 0; step < 2; ++step) {
      whole.set_gradient(step);
      cut.set_gradient(step);
      update(device.kernels, context, whole, 80, {333}, step_of(step));
      update(device.kernels, context, cut, 80, {80, 240, 333}, step_of(step));
    }
    EXPECT_TRUE(same_bits(cut.p, whole.p)) << device.device;
    EXPECT_TRUE(same_bits(cut.row, whole.row)) << device.device;
    EXPECT_TRUE(same_bits(cut.col, whole.col)) << device.device;
  }
}

TEST(AdafactorBlocks, BitsDoNotDependOnThreads) {
  test::expect_same_bits_on_threads([](std::vector<Buffer>& out) {
    TestContext context;
    Matrix x(DType::f32, 700, 130);
    x.set_gradient(1);
    update(cpu::adafactor_block_kernels, context, x, 64, {128, 700}, step_of(0));
    for (Buffer* result : {&x.p, &x.row, &x.col}) out.push_back(std::move(*result));
  });
}

TEST(AdafactorBlocks, ScratchIsAsAnnounced) {
  for (const auto& [rows, cols] : {std::pair{1, 999}, {33, 500}, {1000, 129}}) {
    Matrix x(DType::f32, rows, cols);
    x.set_gradient(1);
    TestContext small(std::int64_t(cpu::adafactor_block_kernels.scratch_bytes(rows, cols)));
    update(cpu::adafactor_block_kernels, small, x, 16, {rows}, step_of(0));
  }
}

}  // namespace
}  // namespace flanmoe
