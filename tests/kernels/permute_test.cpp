#include "kernels/permute.hpp"

#include <numeric>

#include "kernels/cuda_tables.hpp"
#include "kernels/kernel_test.hpp"
#include "kernels/thread_test.hpp"

namespace flanmoe {
namespace {

using test::Buffer;
using test::TestContext;

/// A routing of T tokens with k choices: slots in random order, a quarter of the copies dropped, the first token
/// wholly.
struct Problem {
  Problem(DType c, std::int64_t T, std::int64_t k, std::int64_t D)
      : slot(DType::i32, T, k),
        weight(accumulate_dtype(c), T, k),
        row(c, T * k, D, 3),
        y(c, T, D, 1),
        dy(c, T, D, 2),
        drow(c, T * k, D, 1),
        dweight(accumulate_dtype(c), T, k),
        base(c, T, D),
        dx(c, T, D, 2) {
    weight.randomize(1);
    row.randomize(2);
    dy.randomize(3);
    base.randomize(4);
    drow.fill(0);
    std::vector<std::int64_t> order(static_cast<std::size_t>(T * k));
    std::iota(order.begin(), order.end(), std::int64_t{0});
    std::shuffle(order.begin(), order.end(), std::mt19937(5));
    for (std::int64_t i = 0; i < T * k; ++i) {
      const bool dropped = i < k || order[std::size_t(i)] % 4 == 0;
      slot.set(i, dropped ? -1.0 : double(order[std::size_t(i)]));
    }
  }
  void run(const PermuteKernels& kernels) {
    kernels.combine_forward(context, y, row, weight, slot);
    kernels.combine_backward(context, drow, dweight, dy, row, weight, slot);
    kernels.gather_sum(context, dx, row, slot, base);
  }
  TestContext context;
  Buffer slot, weight, row, y, dy, drow, dweight, base, dx;
};

TEST(Permute, AgreesWithHandNumbers) {
  for (const auto& device : test::devices_of(reference::permute_kernels, cpu::permute_kernels, test::cuda_permute)) {
    TestContext context;
    Buffer slot(DType::i32, 3, 2), weight(DType::f32, 3, 2), row(DType::f32, 3, 2), y(DType::f32, 3, 2);
    Buffer drow(DType::f32, 3, 2), dweight(DType::f32, 3, 2), dy(DType::f32, 3, 2), dx(DType::f32, 3, 2);
    slot.assign({1, 0, -1, 2, -1, -1});
    weight.assign({0.5, 0.25, 8, 2, 1, 1});
    row.assign({4, 8, 2, 6, 1, 3});
    device.kernels.combine_forward(context, y, row, weight, slot);
    test::expect_close(y, {2, 5, 2, 6, 0, 0}, 0, device.device);
    dy.assign({1, 2, 3, 4, 5, 6});
    device.kernels.combine_backward(context, drow, dweight, dy, row, weight, slot);
    test::expect_close(drow, {0.25, 0.5, 0.5, 1, 6, 8}, 0, device.device);
    test::expect_close(dweight, {14, 20, 0, 15, 0, 0}, 0, device.device);
    device.kernels.gather_sum(context, dx, row, slot, {});
    test::expect_close(dx, {6, 14, 1, 3, 0, 0}, 0, device.device);
    device.kernels.gather_sum(context, dx, row, slot, dy);
    test::expect_close(dx, {7, 16, 4, 7, 5, 6}, 0, device.device);
  }
}

TEST(Permute, CombineBackwardIsTheGradientOfTheForward) {
  Problem p(DType::f64, 4, 2, 3);
  p.run(reference::permute_kernels);
  const auto loss = [&] {
    Buffer y(DType::f64, 4, 3);
    reference::permute_kernels.combine_forward(p.context, y, p.row, p.weight, p.slot);
    return test::weighted_sum(y, p.dy);
  };
  test::expect_gradient(p.dweight, loss, p.weight, "dweight");
  test::expect_gradient(p.drow, loss, p.row, "drow");
}

TEST(Permute, FastEqualsReferenceOnOddSizes) {
  for (const DType c : {DType::f32, DType::bf16}) {
    for (const auto& [T, k, D] : {std::tuple{0, 2, 5}, {1, 1, 1}, {7, 3, 3}, {37, 2, 131}, {19, 1, 1030}}) {
      Problem expected(c, T, k, D);
      expected.run(reference::permute_kernels);
      for (const auto& device : test::fast_devices_of(cpu::permute_kernels, test::cuda_permute)) {
        Problem actual(c, T, k, D);
        actual.run(device.kernels);
        // A few terms in fp32; dweight sums D products.
        test::expect_close(actual.y, expected.y, 3e-7, device.device + " y");
        test::expect_close(actual.drow, expected.drow, 0, device.device + " drow");
        test::expect_close(actual.dweight, expected.dweight, 2e-6, device.device + " dweight");
        test::expect_close(actual.dx, expected.dx, 3e-7, device.device + " dx");
      }
    }
  }
}

/// Rows that begin on 16 bytes are moved in whole packs.
TEST(Permute, AlignedRowsAreAsTheReference) {
  for (const DType c : {DType::f32, DType::bf16}) {
    for (const auto& device : test::fast_devices_of(cpu::permute_kernels, test::cuda_permute)) {
      const std::int64_t T = 23, k = 2, D = 264;
      TestContext context;
      Problem p(c, T, k, 1);
      std::vector<Buffer> got, expected;
      Buffer row(c, T * k, D, 8), dy(c, T, D, 16);
      row.randomize(6);
      dy.randomize(7);
      for (const auto* kernels : {&reference::permute_kernels, &device.kernels}) {
        auto& out = kernels == &device.kernels ? got : expected;
        out.emplace_back(c, T, D, 8);
        out.emplace_back(c, T * k, D, 8).fill(0);
        out.emplace_back(accumulate_dtype(c), T, k);
        out.emplace_back(c, T, D, 8);
        kernels->combine_forward(context, out[0], row, p.weight, p.slot);
        kernels->combine_backward(context, out[1], out[2], dy, row, p.weight, p.slot);
        kernels->gather_sum(context, out[3], row, p.slot, dy);
      }
      for (std::size_t i = 0; i < got.size(); ++i) test::expect_close(got[i], expected[i], 2e-6, device.device);
    }
  }
}

TEST(Permute, ScatterUndoesGatherExactly) {
  for (const DType type : {DType::f32, DType::bf16, DType::i32, DType::f64}) {
    for (const auto& device : test::devices_of(reference::permute_kernels, cpu::permute_kernels, test::cuda_permute)) {
      TestContext context;
      const std::int64_t T = 41;
      Buffer x(type, T, 129, 3), y(type, T, 129, 2), back(type, T, 129, 1), index(DType::i32, T, 1);
      if (type == DType::i32) {
        x.randomize_below(1, 1000000);
      } else {
        x.randomize(1);
      }
      for (std::int64_t i = 0; i < T; ++i) index.set(i, double(i * 17 % T));
      device.kernels.gather(context, y, x, index);
      for (std::int64_t i = 0; i < T; ++i) {
        for (std::int64_t c = 0; c < 129; ++c) ASSERT_EQ(y.get(i * 129 + c), x.get((i * 17 % T) * 129 + c));
      }
      device.kernels.scatter(context, back, y, index);
      EXPECT_TRUE(same_bits(back, x)) << device.device << " " << name_of(type);
    }
  }
}

TEST(Permute, GatherMayRepeatAndLeaveOutRows) {
  for (const auto& device : test::devices_of(reference::permute_kernels, cpu::permute_kernels, test::cuda_permute)) {
    TestContext context;
    Buffer x(DType::f32, 3, 1), y(DType::f32, 5, 1), index(DType::i32, 5, 1);
    x.assign({10, 20, 30});
    index.assign({2, 2, 0, 2, 0});
    device.kernels.gather(context, y, x, index);
    test::expect_close(y, {30, 30, 10, 30, 10}, 0, device.device);
  }
}

TEST(Permute, BitsDoNotDependOnThreads) {
  test::expect_same_bits_on_threads([](std::vector<Buffer>& out) {
    Problem p(DType::bf16, 300, 2, 131);
    p.run(cpu::permute_kernels);
    out.push_back(std::move(p.y));
    out.push_back(std::move(p.drow));
    out.push_back(std::move(p.dweight));
    out.push_back(std::move(p.dx));
  });
}

}  // namespace
}  // namespace flanmoe
