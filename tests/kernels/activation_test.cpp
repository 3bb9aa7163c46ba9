#include "kernels/activation.hpp"

#include "kernels/cuda_tables.hpp"
#include "kernels/kernel_test.hpp"
#include "kernels/thread_test.hpp"

namespace flanmoe {
namespace {

using test::Buffer;
using test::TestContext;

constexpr double kNone = 0;  // an elementwise result: nothing but the rounding of the store
// fp32 arithmetic of gelu: exp to 2 units in the last place, about ten roundings.
constexpr double kGelu = 1e-6;

double gelu(double x) { return x / 2 * (1 + std::tanh(std::sqrt(2 / std::numbers::pi) * (x + 0.044715 * x * x * x))); }

TEST(Activation, AgreesWithHandNumbers) {
  for (const auto& device :
       test::devices_of(reference::activation_kernels, cpu::activation_kernels, test::cuda_activation)) {
    TestContext context;
    Buffer x(DType::f32, 1, 4), y(DType::f32, 1, 4), dy(DType::f32, 1, 4), dx(DType::f32, 1, 4), up(DType::f32, 1, 4);
    x.assign({-2, 0, 0.5, 3});
    device.kernels.relu_forward(context, y, x);
    test::expect_close(y, {0, 0, 0.5, 3}, kNone, device.device);
    dy.assign({1, 2, 3, 4});
    device.kernels.relu_backward(context, dx, dy, y);
    test::expect_close(dx, {0, 0, 3, 4}, kNone, device.device);
    up.assign({1, 1, 2, -1});
    device.kernels.gated_gelu_forward(context, y, x, up);
    // gelu(-2) = -0.04540231, gelu(0.5) = 0.34571401, gelu(3) = 2.99636273 in the tanh form.
    test::expect_close(y, {-0.04540231, 0, 0.69142802, -2.99636273}, 1e-6, device.device);
    device.kernels.gated_swish_forward(context, y, x, up);
    // -2/(1+e^2) = -0.23840584, 0.5/(1+e^-0.5) = 0.31122967, 3/(1+e^-3) = 2.85772238.
    test::expect_close(y, {-0.23840584, 0, 0.62245933, -2.85772238}, 1e-6, device.device);
  }
}

TEST(Activation, GeluKeepsItsRelativePrecisionFarBelowZero) {
  for (const auto& device : test::fast_devices_of(cpu::activation_kernels, test::cuda_activation)) {
    TestContext context;
    Buffer x(DType::f32, 1, 101), up(DType::f32, 1, 101), y(DType::f32, 1, 101);
    up.fill(1);
    for (std::int64_t i = 0; i <= 100; ++i) x.set(i, -double(i) / 20);
    device.kernels.gated_gelu_forward(context, y, x, up);
    for (std::int64_t i = 1; i <= 100; ++i) {
      const double v = x.get(i);
      const double exact = v / (1 + std::exp(2 * std::sqrt(2 / std::numbers::pi) * (-v - 0.044715 * v * v * v)));
      // The exponent is up to 17 and rounded to fp32, which the exponential magnifies.
      EXPECT_NEAR(y.get(i) / exact, 1, 4e-6) << device.device << " " << v;
    }
  }
}

TEST(Activation, SwishKeepsItsRelativePrecisionFarBelowZero) {
  for (const auto& device : test::fast_devices_of(cpu::activation_kernels, test::cuda_activation)) {
    TestContext context;
    Buffer x(DType::f32, 1, 101), up(DType::f32, 1, 101), y(DType::f32, 1, 101);
    up.fill(1);
    for (std::int64_t i = 0; i <= 100; ++i) x.set(i, -double(i) / 4);
    device.kernels.gated_swish_forward(context, y, x, up);
    for (std::int64_t i = 1; i <= 100; ++i) {
      const double v = x.get(i);
      EXPECT_NEAR(y.get(i) / (v / (1 + std::exp(-v))), 1, 4e-6) << device.device << " " << v;
    }
  }
}

TEST(Activation, BackwardIsTheGradientOfTheForward) {
  TestContext context;
  Buffer gate(DType::f64, 3, 5), up(DType::f64, 3, 5), dy(DType::f64, 3, 5);
  Buffer dgate(DType::f64, 3, 5), dup(DType::f64, 3, 5);
  gate.randomize(1);
  up.randomize(2);
  dy.randomize(3);
  const ActivationKernels& k = reference::activation_kernels;
  for (const auto& [forward, backward] :
       {std::pair{k.gated_gelu_forward, k.gated_gelu_backward}, {k.gated_swish_forward, k.gated_swish_backward}}) {
    backward(context, dgate, dup, dy, gate, up);
    const auto loss = [&, forward = forward] {
      Buffer y(DType::f64, 3, 5);
      forward(context, y, gate, up);
      return test::weighted_sum(y, dy);
    };
    test::expect_gradient(dgate, loss, gate, "dgate");
    test::expect_gradient(dup, loss, up, "dup");
  }

  Buffer y(DType::f64, 3, 5), dx(DType::f64, 3, 5);
  reference::activation_kernels.relu_forward(context, y, gate);
  reference::activation_kernels.relu_backward(context, dx, dy, y);
  const auto relu_loss = [&] {
    Buffer out(DType::f64, 3, 5);
    reference::activation_kernels.relu_forward(context, out, gate);
    return test::weighted_sum(out, dy);
  };
  test::expect_gradient(dx, relu_loss, gate, "relu");
}

struct Problem {
  Problem(DType c, std::int64_t T, std::int64_t F, std::int64_t padding)
      : gate(c, T, F, padding), up(c, T, F), dy(c, T, F), y(c, T, F, padding), dgate(c, T, F, padding), dup(c, T, F) {
    gate.randomize(4, 2);
    up.randomize(5);
    dy.randomize(6);
  }
  void gelu(const ActivationKernels& kernels) {
    kernels.gated_gelu_forward(context, y, gate, up);
    kernels.gated_gelu_backward(context, dgate, dup, dy, gate, up);
  }
  void swish(const ActivationKernels& kernels) {
    kernels.gated_swish_forward(context, y, gate, up);
    kernels.gated_swish_backward(context, dgate, dup, dy, gate, up);
  }
  TestContext context;
  Buffer gate, up, dy, y, dgate, dup;
};

TEST(Activation, FastEqualsReferenceOnOddSizes) {
  for (const DType c : {DType::f32, DType::bf16}) {
    for (const auto& [T, F] : {std::pair{0, 5}, {1, 1}, {7, 3}, {37, 131}, {3, 9001}, {6, 40}}) {
      for (const std::int64_t padding : {0, 5}) {
        Problem expected(c, T, F, padding), actual(c, T, F, padding), exact(DType::f64, T, F, padding);
        exact.gate.copy_from(actual.gate);
        exact.up.copy_from(actual.up);
        exact.dy.copy_from(actual.dy);
        for (const auto run : {&Problem::gelu, &Problem::swish}) {
          (exact.*run)(reference::activation_kernels);
          for (const auto& device :
               test::devices_of(reference::activation_kernels, cpu::activation_kernels, test::cuda_activation)) {
            (actual.*run)(device.kernels);
            const std::string what = device.device + (run == &Problem::gelu ? " gelu" : " swish");
            const double extra = device.device == "reference" ? kNone : kGelu;
            test::expect_close(actual.y, exact.y, extra, what + " y");
            test::expect_close(actual.dgate, exact.dgate, extra, what + " dgate");
            test::expect_close(actual.dup, exact.dup, extra, what + " dup");
          }
        }
        reference::activation_kernels.relu_forward(expected.context, expected.y, expected.gate);
        reference::activation_kernels.relu_backward(expected.context, expected.dup, expected.dy, expected.y);
        for (const auto& device : test::fast_devices_of(cpu::activation_kernels, test::cuda_activation)) {
          device.kernels.relu_forward(actual.context, actual.y, actual.gate);
          EXPECT_TRUE(same_bits(actual.y, expected.y)) << device.device;
          device.kernels.relu_backward(actual.context, actual.dup, actual.dy, actual.y);
          EXPECT_TRUE(same_bits(actual.dup, expected.dup)) << device.device;
        }
      }
    }
  }
}

TEST(Activation, WorksInPlaceWhereItSaysSo) {
  for (const auto& device :
       test::devices_of(reference::activation_kernels, cpu::activation_kernels, test::cuda_activation)) {
    Problem swish(DType::bf16, 9, 77, 0), swish_inside(DType::bf16, 9, 77, 0);
    swish.swish(device.kernels);
    device.kernels.gated_swish_backward(swish_inside.context, swish_inside.dgate, swish_inside.dy, swish_inside.dy,
                                        swish_inside.gate, swish_inside.up);
    EXPECT_TRUE(same_bits(swish.dgate, swish_inside.dgate)) << device.device;
    EXPECT_TRUE(same_bits(swish.dup, swish_inside.dy)) << device.device;

    Problem apart(DType::bf16, 9, 77, 0), inside(DType::bf16, 9, 77, 0);
    apart.gelu(device.kernels);
    device.kernels.gated_gelu_backward(inside.context, inside.dgate, inside.dy, inside.dy, inside.gate, inside.up);
    EXPECT_TRUE(same_bits(apart.dgate, inside.dgate)) << device.device;
    EXPECT_TRUE(same_bits(apart.dup, inside.dy)) << device.device;

    device.kernels.relu_forward(apart.context, apart.y, apart.gate);
    device.kernels.relu_backward(apart.context, apart.dup, apart.dy, apart.y);
    device.kernels.relu_forward(inside.context, inside.gate, inside.gate);
    inside.dy.copy_from(apart.dy);
    device.kernels.relu_backward(inside.context, inside.dy, inside.dy, inside.gate);
    EXPECT_TRUE(same_bits(apart.y, inside.gate)) << device.device;
    EXPECT_TRUE(same_bits(apart.dup, inside.dy)) << device.device;
  }
}

TEST(Activation, NotANumberPassesThrough) {
  for (const auto& device :
       test::devices_of(reference::activation_kernels, cpu::activation_kernels, test::cuda_activation)) {
    for (const DType c : {DType::f32, DType::bf16}) {
      Problem p(c, 2, 40, 0);
      p.gate.set(41, std::numeric_limits<double>::quiet_NaN());
      for (const auto run : {&Problem::gelu, &Problem::swish}) {
        (p.*run)(device.kernels);
        for (std::int64_t i = 0; i < 80; ++i) {
          EXPECT_EQ(std::isnan(p.y.get(i)), i == 41) << device.device << " " << i;
          EXPECT_EQ(std::isnan(p.dgate.get(i)), i == 41) << device.device << " " << i;
        }
      }
      device.kernels.relu_forward(p.context, p.y, p.gate);
      EXPECT_TRUE(std::isnan(p.y.get(41))) << device.device;
    }
  }
}

TEST(Activation, BitsDoNotDependOnThreads) {
  test::expect_same_bits_on_threads([](std::vector<Buffer>& out) {
    Problem p(DType::f32, 67, 1031, 0);
    p.gelu(cpu::activation_kernels);
    out.push_back(std::move(p.y));
    out.push_back(std::move(p.dgate));
    out.push_back(std::move(p.dup));
  });
}

TEST(Activation, GeluOfTheReferenceIsItsFormula) {
  TestContext context;
  Buffer x(DType::f64, 4, 9), up(DType::f64, 4, 9), y(DType::f64, 4, 9);
  x.randomize(9, 3);
  up.fill(1);
  reference::activation_kernels.gated_gelu_forward(context, y, x, up);
  std::vector<double> expected;
  for (const double v : x.values()) expected.push_back(gelu(v));
  test::expect_close(y, expected, 1e-15);
}

}  // namespace
}  // namespace flanmoe
