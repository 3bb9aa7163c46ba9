#include "kernels/rotary.hpp"

#include <cmath>

#include "kernels/cuda_tables.hpp"
#include "kernels/kernel_test.hpp"
#include "kernels/thread_test.hpp"

namespace flanmoe {
namespace {

using test::Buffer;
using test::TestContext;

const auto devices = test::devices_of(reference::rotary_kernels, cpu::rotary_kernels, test::cuda_rotary);

/// T tokens of H heads of K columns, at positions of their own.
struct Problem {
  Problem(DType c, std::int64_t T, std::int64_t H, std::int64_t K, std::int64_t padding)
      : x(c, T, H * K, padding), position(DType::i32, T, 1), table(accumulate_dtype(c), kPositions, K, padding) {
    x.randomize(1);
    position.randomize_below(2, kPositions);
  }
  void make_table(const RotaryKernels& kernels) { kernels.table(context, table, 10000.0); }
  static constexpr std::int64_t kPositions = 50;
  TestContext context;
  Buffer x, position, table;
};

TEST(Rotary, AgreesWithHandNumbers) {
  for (const auto& device : devices) {
    TestContext context;
    Buffer table(DType::f32, 4, 4), x(DType::f32, 2, 8), position(DType::i32, 2, 1);
    device.kernels.table(context, table, 100.0);
    // Frequencies 100^0 = 1 and 100^(-2/4) = 0.1: position 3 has the angles 3 and 0.3.
    const double c0 = std::cos(3.0), s0 = std::sin(3.0), c1 = std::cos(0.3), s1 = std::sin(0.3);
    for (const auto& [i, value] : {std::pair{12, c0}, {13, c1}, {14, s0}, {15, s1}, {0, 1.0}, {3, 0.0}}) {
      EXPECT_NEAR(table.get(i), value, 1e-7) << device.device << " " << i;
    }
    x.assign({1, 2, 3, 4, 5, 6, 7, 8, 1, 0, 0, 1, 0, 1, 1, 0});
    position.assign({0, 3});
    device.kernels.forward(context, x, position, table);
    test::expect_close(x, {1, 2, 3, 4, 5, 6, 7, 8, c0, -s1, s0, c1, -s0, c1, c0, s1}, 1e-7, device.device);
    device.kernels.backward(context, x, position, table);
    test::expect_close(x, {1, 2, 3, 4, 5, 6, 7, 8, 1, 0, 0, 1, 0, 1, 1, 0}, 1e-7, device.device);
  }
}

TEST(Rotary, FastEqualsReferenceOnOddSizes) {
  for (const DType c : {DType::f32, DType::bf16}) {
    for (const auto& [T, H, K, padding] : {std::tuple{0, 2, 4, 3},
                                           {1, 1, 2, 3},
                                           {7, 3, 6, 3},
                                           {300, 2, 64, 0},
                                           {33, 1, 130, 3},
                                           {5, 3, 16, 0},
                                           {6, 4, 8, 0},
                                           {6, 2, 24, 0}}) {
      for (const auto& device : test::fast_devices_of(cpu::rotary_kernels, test::cuda_rotary)) {
        Problem expected(c, T, H, K, padding), actual(c, T, H, K, padding);
        expected.make_table(reference::rotary_kernels);
        actual.make_table(device.kernels);
        test::expect_close(actual.table, expected.table, 1e-7, device.device + " table");
        reference::rotary_kernels.forward(expected.context, expected.x, expected.position, expected.table);
        device.kernels.forward(actual.context, actual.x, actual.position, actual.table);
        test::expect_close(actual.x, expected.x, 1e-7, device.device + " forward");
        reference::rotary_kernels.backward(expected.context, expected.x, expected.position, expected.table);
        actual.x.copy_from(expected.x);  // judge the backward alone
        reference::rotary_kernels.backward(expected.context, expected.x, expected.position, expected.table);
        device.kernels.backward(actual.context, actual.x, actual.position, actual.table);
        test::expect_close(actual.x, expected.x, 1e-7, device.device + " backward");
      }
    }
  }
}

TEST(Rotary, BackwardIsTheGradientOfTheForward) {
  Problem p(DType::f64, 3, 2, 4, 0);
  p.make_table(reference::rotary_kernels);
  Buffer dy(DType::f64, 3, 8), dx(DType::f64, 3, 8);
  dy.randomize(5);
  dx.copy_from(dy);
  reference::rotary_kernels.backward(p.context, dx, p.position, p.table);
  const auto loss = [&] {
    Buffer y(DType::f64, 3, 8);
    y.copy_from(p.x);
    reference::rotary_kernels.forward(p.context, y, p.position, p.table);
    return test::weighted_sum(y, dy);
  };
  test::expect_gradient(dx, loss, p.x, "dx");
}

TEST(Rotary, ProductsDependOnTheDistanceOnly) {
  // What rotary embedding is for: <R_p q, R_r k> is the same wherever p - r is.
  Problem p(DType::f64, 2, 1, 8, 0);
  p.make_table(reference::rotary_kernels);
  const std::vector<double> start = p.x.values();
  const auto product = [&](double query, double key) {
    p.x.assign(start);
    p.position.assign({query, key});
    reference::rotary_kernels.forward(p.context, p.x, p.position, p.table);
    double sum = 0;
    for (std::int64_t c = 0; c < 8; ++c) sum += p.x.get(c) * p.x.get(8 + c);
    return sum;
  };
  EXPECT_NEAR(product(7, 3), product(44, 40), 1e-12);
  EXPECT_NEAR(product(3, 7), product(40, 44), 1e-12);
  EXPECT_GT(std::abs(product(7, 3) - product(3, 7)), 1e-3);
}

TEST(Rotary, BitsDoNotDependOnThreads) {
  test::expect_same_bits_on_threads([](std::vector<Buffer>& out) {
    Problem p(DType::bf16, 900, 3, 64, 0);
    p.make_table(cpu::rotary_kernels);
    cpu::rotary_kernels.forward(p.context, p.x, p.position, p.table);
    out.push_back(std::move(p.x));
    out.push_back(std::move(p.table));
  });
}

TEST(Rotary, OperandsThatDoNotFitAreRefused) {
  for (const auto& device : devices) {
    Problem p(DType::f32, 3, 2, 4, 0);
    p.make_table(device.kernels);
    if (device.device != "cuda") {  // where the host does not see positions
      p.position.set(1, double(Problem::kPositions));
      EXPECT_THROW(device.kernels.forward(p.context, p.x, p.position, p.table), LogicError) << device.device;
    }
    Buffer odd(DType::f32, 3, 6);
    EXPECT_THROW(device.kernels.forward(p.context, odd, p.position, p.table), LogicError) << device.device;
  }
}

}  // namespace
}  // namespace flanmoe
