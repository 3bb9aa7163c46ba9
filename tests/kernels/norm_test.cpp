#include "kernels/norm.hpp"

#include <omp.h>

#include "kernels/cuda_tables.hpp"
#include "kernels/kernel_test.hpp"
#include "kernels/thread_test.hpp"

namespace flanmoe {
namespace {

using test::Buffer;
using test::TestContext;

constexpr float kEpsilon = 1e-6F;

struct Problem {
  Problem(DType c, std::int64_t T, std::int64_t D, std::int64_t padding, std::uint64_t seed)
      : a(accumulate_dtype(c)),
        x(a, T, D, padding),
        scale(a, 1, D),
        y(c, T, D, padding),
        rstd(a, T, 1),
        dy(c, T, D, padding),
        dx(a, T, D, padding),
        dscale(a, 1, D) {
    x.randomize(seed);
    scale.randomize(seed + 1);
    dy.randomize(seed + 2);
    dx.randomize(seed + 3);
    dscale.randomize(seed + 4);
  }
  void run(const NormKernels& kernels) {
    kernels.forward(context, y, rstd, x, scale, kEpsilon);
    kernels.backward(context, dx, dscale, dy, x, rstd, scale);
  }
  TestContext context;
  DType a;
  Buffer x, scale, y, rstd, dy, dx, dscale;
};

TEST(Norm, ReferenceAgreesWithHandNumbers) {
  TestContext context;
  Buffer x(DType::f64, 2, 2), scale(DType::f64, 1, 2), y(DType::f64, 2, 2), rstd(DType::f64, 2, 1);
  x.assign({3, 4, 0, 0});
  scale.assign({2, -1});
  reference::norm_kernels.forward(context, y, rstd, x, scale, 0.5F);
  // mean(9, 16) = 12.5, plus 0.5 is 13; a row of zeros stays zero.
  test::expect_close(y, {6 / std::sqrt(13.0), -4 / std::sqrt(13.0), 0, 0}, 1e-15);
  test::expect_close(rstd, {1 / std::sqrt(13.0), std::sqrt(2.0)}, 1e-15);
}

TEST(LayerNorm, ReferenceAgreesWithHandNumbers) {
  TestContext context;
  Buffer x(DType::f64, 2, 2), scale(DType::f64, 1, 2), y(DType::f64, 2, 2), rstd(DType::f64, 2, 1);
  x.assign({3, 7, 4, 4});
  scale.assign({2, -1});
  reference::layer_norm_kernels.forward(context, y, rstd, x, scale, 0.5F);
  // Around their mean the rows are (-2, 2), of variance 4, and (0, 0).
  test::expect_close(y, {-4 / std::sqrt(4.5), -2 / std::sqrt(4.5), 0, 0}, 1e-15);
  test::expect_close(rstd, {1 / std::sqrt(4.5), std::sqrt(2.0)}, 1e-15);
}

/// RMSNorm and LayerNorm on all devices.
struct Kind {
  const char* name;
  const NormKernels &reference, &cpu, &cuda;
};
const Kind kinds[] = {{"RMSNorm", reference::norm_kernels, cpu::norm_kernels, test::cuda_norm},
                      {"LayerNorm", reference::layer_norm_kernels, cpu::layer_norm_kernels, test::cuda_layer_norm}};

TEST(Norm, BackwardIsTheGradientOfTheForward) {
  for (const Kind& kind : kinds) {
    Problem p(DType::f64, 3, 5, 2, 1);
    p.dx.fill(0);
    p.dscale.fill(0);
    p.run(kind.reference);
    const auto loss = [&] {
      Buffer y(DType::f64, 3, 5);
      kind.reference.forward(p.context, y, {}, p.x, p.scale, kEpsilon);
      return test::weighted_sum(y, p.dy);
    };
    test::expect_gradient(p.dx, loss, p.x, std::string(kind.name) + " dx");
    test::expect_gradient(p.dscale, loss, p.scale, std::string(kind.name) + " dscale");
  }
}

TEST(Norm, FastEqualsReferenceOnOddSizes) {
  for (const Kind& kind : kinds) {
    for (const DType c : {DType::f32, DType::bf16}) {
      for (const auto& [T, D, padding] :
           {std::tuple{0, 7, 3}, {1, 1, 3}, {5, 3, 3}, {33, 67, 3}, {40, 768, 0}, {300, 129, 3}}) {
        Problem expected(c, T, D, padding, 7);
        expected.run(kind.reference);
        for (const auto& device : test::fast_devices_of(kind.cpu, kind.cuda)) {
          Problem actual(c, T, D, padding, 7);
          actual.run(device.kernels);
          // fp32 sums of up to 768 terms in another order, through one bf16 rounding of y. LayerNorm of one column
          // divides the rounding of 0 by sqrt(epsilon).
          const double extra = D == 1 ? 1e-4 : 3e-6;
          const std::string what = device.device + " " + kind.name;
          test::expect_close(actual.rstd, expected.rstd, extra, what + " rstd");
          test::expect_close(actual.y, expected.y, extra, what + " y");
          test::expect_close(actual.dx, expected.dx, extra, what + " dx");
          test::expect_close(actual.dscale, expected.dscale, extra, what + " dscale");
        }
      }
    }
  }
}

TEST(Norm, BackwardAddsToItsGradients) {
  for (const auto& device : test::devices_of(reference::norm_kernels, cpu::norm_kernels, test::cuda_norm)) {
    Problem p(DType::f32, 4, 6, 0, 3);
    p.run(device.kernels);
    Problem zero(DType::f32, 4, 6, 0, 3);
    auto dx = p.dx.values();
    auto dscale = p.dscale.values();
    const auto dx0 = zero.dx.values();
    const auto dscale0 = zero.dscale.values();
    zero.dx.fill(0);
    zero.dscale.fill(0);
    zero.run(device.kernels);
    for (std::size_t i = 0; i < dx.size(); ++i) dx[i] -= dx0[i];
    for (std::size_t i = 0; i < dscale.size(); ++i) dscale[i] -= dscale0[i];
    test::expect_close(zero.dx, dx, 1e-6, device.device);
    test::expect_close(zero.dscale, dscale, 1e-6, device.device);
  }
}

TEST(Norm, WithoutTheGradientOfTheScaleTheOtherOneIsTheSame) {
  for (const DType c : {DType::f32, DType::bf16}) {
    for (const auto& device : test::devices_of(reference::norm_kernels, cpu::norm_kernels, test::cuda_norm)) {
      Problem whole(c, 40, 67, 3, 9), part(c, 40, 67, 3, 9);
      whole.run(device.kernels);
      device.kernels.forward(part.context, part.y, part.rstd, part.x, part.scale, kEpsilon);
      device.kernels.backward(part.context, part.dx, {}, part.dy, part.x, part.rstd, part.scale);
      EXPECT_EQ(part.dx.values(), whole.dx.values()) << device.device;
    }
  }
}

TEST(Norm, BitsDoNotDependOnThreads) {
  for (const Kind& kind : kinds) {
    test::expect_same_bits_on_threads([&](std::vector<Buffer>& out) {
      Problem p(DType::bf16, 777, 192, 0, 11);
      p.run(kind.cpu);
      out.push_back(std::move(p.y));
      out.push_back(std::move(p.dx));
      out.push_back(std::move(p.dscale));
    });
  }
}

TEST(Norm, ScratchIsAsAnnounced) {
  for (const std::int64_t most : {1, 16, 17, 1025, 5000}) {
    TestContext context(std::int64_t(cpu::norm_kernels.scratch_bytes(most, 128)));
    for (const std::int64_t T : {most, most - 1, most / 2}) {
      Problem p(DType::f32, T, 128, 0, 5);
      cpu::norm_kernels.forward(context, p.y, p.rstd, p.x, p.scale, kEpsilon);
      cpu::norm_kernels.backward(context, p.dx, p.dscale, p.dy, p.x, p.rstd, p.scale);
    }
  }
}

}  // namespace
}  // namespace flanmoe
