#include "kernels/column_scale.hpp"

#include "kernels/cuda_tables.hpp"
#include "kernels/kernel_test.hpp"
#include "kernels/thread_test.hpp"

namespace flanmoe {
namespace {

using test::Buffer;
using test::TestContext;

const auto kDevices =
    test::devices_of(reference::column_scale_kernels, cpu::column_scale_kernels, test::cuda_column_scale);

TEST(ColumnScale, AgreesWithHandNumbers) {
  for (const auto& device : kDevices) {
    TestContext context;
    Buffer x(DType::f32, 3, 2, 1), y(DType::f32, 3, 2, 2), dy(DType::f32, 3, 2), dx(DType::f32, 3, 2);
    Buffer scale(DType::f32, 1, 2, 0, 3), d0(DType::f32, 1, 2), d1(DType::f32, 1, 2), d2(DType::f32, 1, 2);
    x.assign({1, 2, 3, 4, 5, 6});
    dy.assign({1, 1, 2, 0, 0, 3});
    scale.assign({2, -1, 7, 7, 0.5, 0});  // group 1 has no rows
    const std::vector<std::int64_t> first = {0, 2, 2, 3};
    device.kernels.forward(context, y, x, scale, first);
    test::expect_close(y, {2, -2, 6, -4, 2.5, 0}, 0, device.device);
    d0.fill(10);
    d1.fill(10);
    d2.fill(10);
    const std::vector<Tensor> dscale = {d0, d1, d2};
    device.kernels.backward(context, dx, dscale, dy, x, scale, first);
    test::expect_close(dx, {2, -1, 4, 0, 0, 0}, 0, device.device);
    test::expect_close(d0, {10 + 1 * 1 + 2 * 3, 10 + 1 * 2 + 0 * 4}, 0, device.device);
    test::expect_close(d1, {10, 10}, 0, device.device);
    test::expect_close(d2, {10, 10 + 3 * 6}, 0, device.device);
  }
}

TEST(ColumnScale, BackwardIsTheGradientOfTheForward) {
  TestContext context;
  Buffer x(DType::f64, 5, 3), y(DType::f64, 5, 3), dy(DType::f64, 5, 3), dx(DType::f64, 5, 3);
  Buffer scale(DType::f64, 1, 3, 0, 2), dscale(DType::f64, 1, 3, 0, 2);
  x.randomize(1);
  dy.randomize(2);
  scale.randomize(3);
  dscale.fill(0);
  const std::vector<std::int64_t> first = {0, 2, 5};
  const std::vector<Tensor> parts = {dscale.view().matrix(0), dscale.view().matrix(1)};
  reference::column_scale_kernels.backward(context, dx, parts, dy, x, scale, first);
  const auto loss = [&] {
    reference::column_scale_kernels.forward(context, y, x, scale, first);
    return test::weighted_sum(y, dy);
  };
  test::expect_gradient(dx, loss, x, "dx");
  test::expect_gradient(dscale, loss, scale, "dscale");
}

TEST(ColumnScale, FastEqualsReferenceOnOddSizesInPlace) {
  for (const DType dtype : {DType::f32, DType::bf16}) {
    for (const auto& [R, F] : {std::pair<std::int64_t, std::int64_t>{203, 517}, {150, 64}}) {
      for (const auto& device : test::fast_devices_of(cpu::column_scale_kernels, test::cuda_column_scale)) {
        TestContext context;
        const std::vector<std::int64_t> first = {0, 0, 130, 131, R};
        Buffer x(dtype, R, F, F == 64 ? 0 : 5), dy(dtype, R, F), scale(DType::f32, 1, F, 0, 4);
        x.randomize(1);
        scale.randomize(2);
        dy.randomize(3);
        Buffer y_r(dtype, R, F), y_c(dtype, R, F);
        reference::column_scale_kernels.forward(context, y_r, x, scale, first);
        device.kernels.forward(context, y_c, x, scale, first);
        test::expect_close(y_c, y_r, 0, device.device + " y");
        std::vector<Buffer> dscale;
        std::vector<Tensor> r, c;
        for (int i = 0; i < 8; ++i) {
          dscale.emplace_back(DType::f32, 1, F);
          dscale.back().fill(0);
        }
        for (std::size_t i = 0; i < 4; ++i) r.push_back(dscale[i].view());
        for (std::size_t i = 4; i < 8; ++i) c.push_back(dscale[i].view());
        reference::column_scale_kernels.backward(context, y_r, r, dy, x, scale, first);
        device.kernels.backward(context, dy, c, dy, x, scale, first);
        test::expect_close(dy, y_r, 0, device.device + " dx");
        for (std::size_t i = 0; i < 4; ++i) test::expect_close(dscale[i + 4], dscale[i], 1e-5, "dscale");
      }
    }
  }
}

TEST(ColumnScale, BitsDoNotDependOnThreads) {
  test::expect_same_bits_on_threads([](std::vector<Buffer>& out) {
    TestContext context;
    const std::vector<std::int64_t> first = {0, 300, 1000};
    Buffer x(DType::f32, 1000, 300), dy(DType::f32, 1000, 300), dx(DType::f32, 1000, 300),
        scale(DType::f32, 1, 300, 0, 2), d0(DType::f32, 1, 300), d1(DType::f32, 1, 300);
    x.randomize(1);
    dy.randomize(2);
    scale.randomize(3);
    d0.fill(0);
    d1.fill(0);
    const std::vector<Tensor> dscale = {d0, d1};
    cpu::column_scale_kernels.backward(context, dx, dscale, dy, x, scale, first);
    for (Buffer* result : {&dx, &d0, &d1}) out.push_back(std::move(*result));
  });
}

}  // namespace
}  // namespace flanmoe
