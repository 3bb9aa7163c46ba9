#include "kernels/optimizer.hpp"

#include "kernels/cuda_tables.hpp"
#include "kernels/kernel_test.hpp"
#include "kernels/thread_test.hpp"

namespace flanmoe {
namespace {

using test::Buffer;
using test::TestContext;
using Matrix = std::vector<std::vector<double>>;

std::vector<test::Implementation<OptimizerKernels>> devices() {
  const auto all = test::devices_of(reference::optimizer_kernels, cpu::optimizer_kernels, test::cuda_optimizer);
  return {all.begin(), all.end()};
}

// Lists of one matrix.
void update_adamw(const OptimizerKernels& k, KernelContext& context, const Tensor& p, const Tensor& m, const Tensor& v,
                  const Tensor& g, const AdamWStep& step) {
  k.adamw(context, std::array{AdamWMatrix{p, m, v, g}}, step);
}
void update_factored(const OptimizerKernels& k, KernelContext& context, const Tensor& p, const Tensor& row,
                     const Tensor& col, const Tensor& g, const AdafactorStep& step) {
  k.adafactor(context, std::array{AdafactorMatrix{p, g, row, col, {}}}, step);
}
void update_full(const OptimizerKernels& k, KernelContext& context, const Tensor& p, const Tensor& v, const Tensor& g,
                 const AdafactorStep& step) {
  k.adafactor(context, std::array{AdafactorMatrix{p, g, {}, {}, v}}, step);
}
double sum_of_squares(const OptimizerKernels& k, KernelContext& context, const Tensor& x) {
  std::array<double, 1> sum{-1};
  k.sums_of_squares(context, sum, std::array{x});
  return sum[0];
}

Matrix matrix_of(const Buffer& x) {
  Matrix m;
  const auto values = x.values();
  for (std::int64_t i = 0; i < x.view().rows; ++i) {
    m.emplace_back(values.begin() + i * x.view().cols, values.begin() + (i + 1) * x.view().cols);
  }
  return m;
}
std::vector<double> flat_of(const Matrix& m) {
  std::vector<double> out;
  for (const auto& row : m) out.insert(out.end(), row.begin(), row.end());
  return out;
}
double rms(const Matrix& m) {
  double sum = 0;
  for (const double x : flat_of(m)) sum += x * x;
  return std::sqrt(sum / double(flat_of(m).size()));
}

/// The published update of one factored matrix, line by line.
void adafactor_factored(Matrix& p, std::vector<double>& vr, std::vector<double>& vc, const Matrix& g,
                        const AdafactorStep& s) {
  const std::size_t n = p.size();
  const std::size_t m = p[0].size();
  const double alpha = s.learning_rate * (s.multiply_by_parameter_scale ? std::max(rms(p), s.epsilon2) : 1);
  std::vector<double> row_mean(n, 0), col_mean(m, 0);
  for (std::size_t i = 0; i < n; ++i) {
    for (std::size_t j = 0; j < m; ++j) {
      const double square = std::pow(g[i][j] * s.gradient_scale, 2) + s.epsilon1;
      row_mean[i] += square / double(m);
      col_mean[j] += square / double(n);
    }
  }
  double mean_vr = 0;
  for (std::size_t i = 0; i < n; ++i) mean_vr += (vr[i] = s.decay * vr[i] + (1 - s.decay) * row_mean[i]) / double(n);
  for (std::size_t j = 0; j < m; ++j) vc[j] = s.decay * vc[j] + (1 - s.decay) * col_mean[j];
  Matrix u = g;
  for (std::size_t i = 0; i < n; ++i) {
    for (std::size_t j = 0; j < m; ++j) {
      u[i][j] = g[i][j] * s.gradient_scale * std::pow(vr[i] / mean_vr, -0.5) * std::pow(vc[j], -0.5);
    }
  }
  const double clip = std::max(1.0, rms(u) / s.clip_threshold);
  for (std::size_t i = 0; i < n; ++i) {
    for (std::size_t j = 0; j < m; ++j) {
      p[i][j] -= alpha * u[i][j] / clip + s.learning_rate * s.weight_decay * p[i][j];
    }
  }
}

void adafactor_full(Matrix& p, Matrix& v, const Matrix& g, const AdafactorStep& s) {
  const double alpha = s.learning_rate * (s.multiply_by_parameter_scale ? std::max(rms(p), s.epsilon2) : 1);
  Matrix u = g;
  for (std::size_t i = 0; i < p.size(); ++i) {
    for (std::size_t j = 0; j < p[0].size(); ++j) {
      const double gradient = g[i][j] * s.gradient_scale;
      v[i][j] = s.decay * v[i][j] + (1 - s.decay) * (gradient * gradient + s.epsilon1);
      u[i][j] = gradient * std::pow(v[i][j], -0.5);
    }
  }
  const double clip = std::max(1.0, rms(u) / s.clip_threshold);
  for (std::size_t i = 0; i < p.size(); ++i) {
    for (std::size_t j = 0; j < p[0].size(); ++j) {
      p[i][j] -= alpha * u[i][j] / clip + s.learning_rate * s.weight_decay * p[i][j];
    }
  }
}

struct Operands {
  Operands(DType a, std::int64_t rows, std::int64_t cols, std::int64_t padding = 0)
      : p(a, rows, cols, padding),
        g(a, rows, cols, padding),
        m(a, rows, cols, padding),
        v(a, rows, cols, padding),
        row(a, rows, 1),
        col(a, 1, cols) {
    p.randomize(1, 0.05);
    for (Buffer* state : {&m, &v, &row, &col}) state->fill(0);
  }
  Buffer p, g, m, v, row, col;
};
struct Problem : Operands {
  using Operands::Operands;
  TestContext context;
};

double decay_of(std::int64_t step) { return 1 - std::pow(double(step + 1), -0.8); }

/// fp32 elements; the statistics of a few steps and the update are a dozen fp32 roundings.
double tolerance(DType a) { return a == DType::f64 ? 1e-13 : 1e-6; }

TEST(Optimizer, FactoredAdafactorAgreesWithHandNumbers) {
  for (const auto& device : devices()) {
    Problem x(DType::f32, 2, 2);
    x.p.assign({3, 0, 0, 4});
    x.g.assign({1, 1, 2, 2});
    // g^2 is the outer product of (1, 4) and (1, 1): row means (1, 4), their mean 2.5; column means (2.5, 2.5).
    // u = g / sqrt(row/2.5) / sqrt(2.5) = 1 everywhere: RMS(u) = 1, no clipping. RMS(p) = 2.5.
    update_factored(device.kernels, x.context, x.p, x.row, x.col, x.g, {.learning_rate = 0.1, .decay = 0});
    test::expect_close(x.row, {1, 4}, 1e-7, device.device);
    test::expect_close(x.col, {2.5, 2.5}, 1e-7, device.device);
    test::expect_close(x.p, {2.75, -0.25, -0.25, 3.75}, 1e-7, device.device);
  }
}

TEST(Optimizer, AdafactorClipsTheUpdateByItsRms) {
  for (const auto& device : devices()) {
    Problem x(DType::f32, 1, 4);
    x.p.assign({1, 1, 1, 1});
    x.g.assign({2, -2, 2, 2});
    // v = 0.75 * 0 + 0.25 * 4 = 1: u = +-2, RMS(u) = 2, clipped to +-1; alpha = 0.5 * RMS(p) = 0.5.
    update_full(device.kernels, x.context, x.p, x.v, x.g, {.learning_rate = 0.5, .decay = 0.75});
    test::expect_close(x.v, {1, 1, 1, 1}, 1e-7, device.device);
    test::expect_close(x.p, {0.5, 1.5, 0.5, 0.5}, 1e-7, device.device);
  }
}

TEST(Optimizer, SmallParametersMoveByEpsilon2) {
  for (const auto& device : devices()) {
    Problem x(DType::f32, 1, 2);
    x.p.assign({0, 0});
    x.g.assign({5, -3});
    update_full(device.kernels, x.context, x.p, x.v, x.g, {.learning_rate = 0.5, .decay = 0});
    test::expect_close(x.p, {-0.5e-3, 0.5e-3}, 1e-6, device.device);
  }
}

TEST(Optimizer, AdafactorFollowsThePublishedUpdateOverSteps) {
  for (const DType a : {DType::f32, DType::f64}) {
    for (const auto& device : devices()) {
      if (a == DType::f64 && device.device != "reference") continue;  // doubles are served by the reference
      for (const auto& [rows, cols] : {std::pair{1, 1}, {5, 3}, {33, 70}, {600, 37}, {3, 2500}}) {
        Problem x(a, rows, cols, 2), y(a, rows, cols);
        Matrix p = matrix_of(x.p), q = p, v = matrix_of(y.v);
        std::vector<double> vr(std::size_t(rows), 0.0), vc(std::size_t(cols), 0.0);
        for (std::int64_t step = 0; step < 3; ++step) {
          // Gradients of very different rows and columns, growing, so that clipping is at work.
          x.g.randomize(10 + std::uint64_t(step), std::pow(3.0, double(step)));
          for (std::int64_t i = 0; i < rows * cols; ++i) {
            x.g.set(i, x.g.get(i) * double(1 + i / cols % 3) * double(1 + i % 5));
          }
          y.g.copy_from(x.g);
          const AdafactorStep s = {.learning_rate = 0.01,
                                   .decay = decay_of(step),
                                   .weight_decay = 0.1,
                                   .gradient_scale = step == 1 ? 0.25 : 1.0};
          update_factored(device.kernels, x.context, x.p, x.row, x.col, x.g, s);
          adafactor_factored(p, vr, vc, matrix_of(x.g), s);
          update_full(device.kernels, y.context, y.p, y.v, y.g, s);
          adafactor_full(q, v, matrix_of(y.g), s);
        }
        test::expect_close(x.p, flat_of(p), tolerance(a), device.device + " factored");
        test::expect_close(x.row, vr, tolerance(a), device.device + " row factor");
        test::expect_close(x.col, vc, tolerance(a), device.device + " column factor");
        test::expect_close(y.p, flat_of(q), tolerance(a), device.device + " full");
        test::expect_close(y.v, flat_of(v), tolerance(a), device.device + " moment");
      }
    }
  }
}

TEST(Optimizer, ParameterScaleCanBeSwitchedOff) {
  for (const auto& device : devices()) {
    Problem x(DType::f32, 4, 6), y(DType::f32, 4, 6);
    x.g.randomize(3);
    y.g.randomize(3);
    Matrix p = matrix_of(x.p), q = p, v = matrix_of(y.v);
    std::vector<double> vr(4, 0.0), vc(6, 0.0);
    const AdafactorStep s = {.learning_rate = 0.2, .clip_threshold = 0.5, .multiply_by_parameter_scale = false};
    update_factored(device.kernels, x.context, x.p, x.row, x.col, x.g, s);
    update_full(device.kernels, y.context, y.p, y.v, y.g, s);
    adafactor_factored(p, vr, vc, matrix_of(x.g), s);
    adafactor_full(q, v, matrix_of(y.g), s);
    test::expect_close(x.p, flat_of(p), 1e-6, device.device);
    test::expect_close(y.p, flat_of(q), 1e-6, device.device);
  }
}

TEST(Optimizer, AdafactorIgnoresTheScaleOfTheGradient) {
  for (const auto& device : devices()) {
    Problem x(DType::f32, 9, 11), y(DType::f32, 9, 11);
    x.g.randomize(3);
    y.g.randomize(3, 0x1p-20);  // a power of two: no other rounding
    update_factored(device.kernels, x.context, x.p, x.row, x.col, x.g, {.learning_rate = 0.1});
    update_factored(device.kernels, y.context, y.p, y.row, y.col, y.g, {.learning_rate = 0.1});
    test::expect_close(x.p, y.p, 1e-7, device.device);
  }
}

TEST(Optimizer, ZeroGradientsChangeNothing) {
  for (const auto& device : devices()) {
    Problem x(DType::f32, 5, 7), y(DType::f32, 5, 7);
    x.g.fill(0);
    update_factored(device.kernels, x.context, x.p, x.row, x.col, x.g, {.learning_rate = 1});
    update_full(device.kernels, x.context, x.p, x.v, x.g, {.learning_rate = 1});
    EXPECT_TRUE(same_bits(x.p, y.p)) << device.device;
  }
}

TEST(Optimizer, AdamWAgreesWithHandNumbers) {
  for (const auto& device : devices()) {
    Problem x(DType::f32, 1, 2);
    x.p.assign({1, -2});
    x.g.assign({4, -8});
    const AdamWStep s = {
        .learning_rate = 0.1, .beta1 = 0.5, .beta2 = 0.75, .weight_decay = 0.01, .gradient_scale = 0.5};
    // g = (2, -4); the bias corrections undo (1-b) on the first step: p -= 0.1 (sign(g) + 0.01 p).
    update_adamw(device.kernels, x.context, x.p, x.m, x.v, x.g, s);
    test::expect_close(x.m, {1, -2}, 1e-7, device.device);
    test::expect_close(x.v, {1, 4}, 1e-7, device.device);
    test::expect_close(x.p, {1 - 0.101, -2 + 0.102}, 1e-7, device.device);
  }
}

TEST(Optimizer, AdamWFollowsItsFormulaOverSteps) {
  for (const DType a : {DType::f32, DType::f64}) {
    for (const auto& device : devices()) {
      if (a == DType::f64 && device.device != "reference") continue;
      for (const std::int64_t padding : {0, 3}) {
        Problem x(a, 13, 701, padding);
        std::vector<double> p = x.p.values(), m(p.size(), 0.0), v(p.size(), 0.0);
        for (std::int64_t step = 0; step < 3; ++step) {
          x.g.randomize(20 + std::uint64_t(step));
          const AdamWStep s = {.learning_rate = 0.01, .weight_decay = 0.1, .step = step, .gradient_scale = 0.5};
          update_adamw(device.kernels, x.context, x.p, x.m, x.v, x.g, s);
          for (std::size_t i = 0; i < p.size(); ++i) {
            const double g = 0.5 * x.g.get(std::int64_t(i));
            m[i] = 0.9 * m[i] + 0.1 * g;
            v[i] = 0.999 * v[i] + 0.001 * g * g;
            const double mhat = m[i] / (1 - std::pow(0.9, double(step + 1)));
            const double vhat = v[i] / (1 - std::pow(0.999, double(step + 1)));
            p[i] -= 0.01 * (mhat / (std::sqrt(vhat) + 1e-8) + 0.1 * p[i]);
          }
        }
        test::expect_close(x.p, p, tolerance(a), device.device);
        test::expect_close(x.m, m, tolerance(a), device.device);
        test::expect_close(x.v, v, tolerance(a), device.device);
      }
    }
  }
}

TEST(Optimizer, SumOfSquaresIsExactWhereItCanBe) {
  for (const auto& device : devices()) {
    for (const DType type : {DType::f32, DType::bf16}) {
      for (const std::int64_t n : {0, 1, 77, 4096, 4097, 100000, 3000001}) {
        TestContext context;
        Buffer x(type, 1, n);
        double expected = 0;
        for (std::int64_t i = 0; i < n; ++i) {
          x.set(i, double(i % 19 - 9));
          expected += double((i % 19 - 9) * (i % 19 - 9));
        }
        EXPECT_EQ(sum_of_squares(device.kernels, context, x), expected) << device.device << " " << n;
      }
    }
  }
}

TEST(Optimizer, SumOfSquaresDoesNotLoseSmallTerms) {
  for (const auto& device : devices()) {
    TestContext context;
    Buffer x(DType::f32, 1, 50000);
    x.fill(1e-4);
    x.set(0, 1e2);
    EXPECT_NEAR(sum_of_squares(device.kernels, context, x) - 1e4, 49999 * 1e-8, 1e-8) << device.device;
  }
}

TEST(Optimizer, BitsDoNotDependOnThreads) {
  test::expect_same_bits_on_threads([](std::vector<Buffer>& out) {
    for (const auto& [rows, cols] : {std::pair{700, 130}, {40, 3000}}) {
      Problem x(DType::f32, rows, cols), y(DType::f32, rows, cols);
      Buffer sum(DType::f64, 1, 1);
      x.g.randomize(5, 10);
      y.g.randomize(6, 10);
      sum.set(0, sum_of_squares(cpu::optimizer_kernels, x.context, x.g));
      update_factored(cpu::optimizer_kernels, x.context, x.p, x.row, x.col, x.g, {.learning_rate = 0.1});
      update_full(cpu::optimizer_kernels, y.context, y.p, y.v, y.g, {.learning_rate = 0.1});
      update_adamw(cpu::optimizer_kernels, y.context, y.p, y.m, y.v, y.g, {.learning_rate = 0.1});
      for (Buffer* result : {&sum, &x.p, &x.row, &x.col, &y.p, &y.v, &y.m}) out.push_back(std::move(*result));
    }
  });
}

/// Matrices of many shapes, some without elements, with and without gaps between rows; every third one with factors.
std::vector<Operands> assorted(int count) {
  std::vector<Operands> all;
  all.reserve(std::size_t(count));
  constexpr std::array<std::pair<int, int>, 6> shapes{{{1, 10}, {70, 33}, {3, 1200}, {0, 5}, {16, 16}, {1, 1}}};
  for (int i = 0; i < count; ++i) {
    const auto [rows, cols] = shapes[std::size_t(i) % shapes.size()];
    all.emplace_back(DType::f32, rows, cols, i % 4 == 3 && i % 3 == 0 ? 3 : 0);
    all.back().g.randomize(std::uint64_t(i) + 1);
    all.back().p.randomize(std::uint64_t(i) + 1000, 0.1);
  }
  return all;
}
bool has_factors(std::size_t i) { return i % 3 == 0; }
bool does_decay(std::size_t i) { return i % 2 == 0; }

AdafactorMatrix adafactor_of(const Operands& x, std::size_t i) {
  return has_factors(i) ? AdafactorMatrix{x.p, x.g, x.row, x.col, {}, does_decay(i)}
                        : AdafactorMatrix{x.p, x.g, {}, {}, x.v, does_decay(i)};
}

/// `all` updated as one list has the bits of `single` updated one by one, and the values of the reference.
void expect_list_equals_singles(const OptimizerKernels& k, int count, const std::string& device) {
  TestContext context;
  std::vector<Operands> all = assorted(count), single = assorted(count), reference = assorted(count);
  std::vector<AdamWMatrix> adamw;
  std::vector<AdafactorMatrix> adafactor;
  std::vector<Tensor> gradients;
  std::vector<std::size_t> contiguous;
  for (std::size_t i = 0; i < all.size(); ++i) {
    adamw.push_back({all[i].p, all[i].m, all[i].v, all[i].g, does_decay(i)});
    adafactor.push_back(adafactor_of(all[i], i));
    if (!all[i].g.view().contiguous()) continue;
    contiguous.push_back(i);
    gradients.push_back(all[i].g);
  }
  const AdafactorStep factor_step{.learning_rate = 0.01, .decay = 0.5, .weight_decay = 0.1, .gradient_scale = 0.5};
  const AdamWStep adam_step{.learning_rate = 0.01, .weight_decay = 0.1, .step = 2};
  std::vector<double> sums(gradients.size(), -1);
  k.adafactor(context, adafactor, factor_step);
  k.adamw(context, adamw, adam_step);
  k.sums_of_squares(context, sums, gradients);
  for (std::size_t i = 0; i < all.size(); ++i) {
    Operands &x = single[i], &r = reference[i];
    k.adafactor(context, std::array{adafactor_of(x, i)}, factor_step);
    k.adamw(context, std::array{AdamWMatrix{x.p, x.m, x.v, x.g, does_decay(i)}}, adam_step);
    reference::optimizer_kernels.adafactor(context, std::array{adafactor_of(r, i)}, factor_step);
    reference::optimizer_kernels.adamw(context, std::array{AdamWMatrix{r.p, r.m, r.v, r.g, does_decay(i)}}, adam_step);
    const std::string what = fmt::format("{}, matrix {}", device, i);
    EXPECT_TRUE(same_bits(all[i].p, x.p) && same_bits(all[i].m, x.m) && same_bits(all[i].v, x.v)) << what;
    EXPECT_TRUE(same_bits(all[i].row, x.row) && same_bits(all[i].col, x.col)) << what;
    test::expect_close(all[i].p, r.p, 1e-5, what);
  }
  for (std::size_t i = 0; i < sums.size(); ++i) {
    EXPECT_EQ(sums[i], sum_of_squares(k, context, single[contiguous[i]].g)) << device << ", matrix " << contiguous[i];
  }
}

TEST(Optimizer, AListIsUpdatedAsItsMatricesOneByOne) {
  for (const auto& device : devices()) expect_list_equals_singles(device.kernels, 30, device.device);
}

TEST(Optimizer, AListMayBeLongerThanALaunch) {
  for (const auto& device : devices()) {
    TestContext context;
    constexpr std::size_t count = 1100;
    Buffer p(DType::f32, count, 3), g(DType::f32, count, 3), m(DType::f32, count, 3), v(DType::f32, count, 3);
    p.fill(0);
    m.fill(0);
    v.fill(0);
    std::vector<AdamWMatrix> list;
    std::vector<Tensor> gradients;
    for (std::int64_t i = 0; i < std::int64_t(count); ++i) {
      for (std::int64_t j = 0; j < 3; ++j) g.set(3 * i + j, double(i + 1));
      const auto row = [i](const Buffer& x) { return x.view().slice_rows(i, 1); };
      list.push_back({row(p), row(m), row(v), row(g)});
      gradients.push_back(row(g));
    }
    std::vector<double> sums(count);
    device.kernels.sums_of_squares(context, sums, gradients);
    device.kernels.adamw(context, list, {.learning_rate = 0.5});
    for (std::size_t i = 0; i < count; ++i) ASSERT_EQ(sums[i], 3.0 * double(i + 1) * double(i + 1)) << device.device;
    test::expect_close(p, std::vector<double>(3 * count, -0.5), 1e-6, device.device);
  }
}

TEST(Optimizer, BalanceMovesByTheSignOfTheLoadError) {
  for (const auto& device : devices()) {
    TestContext context;
    Buffer b(DType::f32, 1, 4), count(DType::f32, 1, 4);
    b.assign({0.5, 0.5, 0.5, 0.5});
    count.assign({9, 5, 0, 6});  // mean 5
    device.kernels.balance(context, b, count, 0.125);
    test::expect_close(b, {0.375, 0.5, 0.625, 0.375}, 0, device.device);
    count.assign({16777000, 16777001, 16777000, 16777000});
    device.kernels.balance(context, b, count, 0.125);
    test::expect_close(b, {0.5, 0.375, 0.75, 0.5}, 0, device.device);
  }
}

TEST(Optimizer, ScratchIsAsAnnounced) {
  for (const auto& [rows, cols] : {std::pair{1, 999}, {33, 500}, {1000, 129}}) {
    Problem x(DType::f32, rows, cols);
    x.g.randomize(1);
    TestContext small(std::int64_t(cpu::optimizer_kernels.scratch_bytes(rows, cols)));
    update_factored(cpu::optimizer_kernels, small, x.p, x.row, x.col, x.g, {.learning_rate = 0.1});
  }
}

}  // namespace
}  // namespace flanmoe
