#include "kernels/elementwise.hpp"

#include <limits>

#include "kernels/cuda_tables.hpp"
#include "kernels/kernel_test.hpp"
#include "kernels/thread_test.hpp"

namespace flanmoe {
namespace {

using test::Buffer;
using test::TestContext;

constexpr auto kFloating = {DType::f32, DType::bf16, DType::f64};

TEST(Elementwise, ConvertRoundsToNearestEven) {
  for (const auto& device :
       test::devices_of(reference::elementwise_kernels, cpu::elementwise_kernels, test::cuda_elementwise)) {
    TestContext context;
    Buffer wide(DType::f64, 1, 6), middle(DType::f32, 1, 6), narrow(DType::bf16, 1, 6);
    const double inf = std::numeric_limits<double>::infinity();
    // bf16 has 8 bits: 1 + 2^-8 is a tie and goes to the even 1; 1 + 3*2^-8 goes up to 1 + 2^-6.
    wide.assign({1 + 0x1p-8, 1 + 3 * 0x1p-8, -(1 + 0x1.8p-8), inf, -0.0, 3.38e38});
    device.kernels.convert(context, middle, wide);
    device.kernels.convert(context, narrow, middle);
    const std::vector<double> expected = {1, 1 + 0x1p-6, -(1 + 0x1p-7), inf, -0.0, 3.38e38};
    for (std::int64_t i = 0; i < 5; ++i) EXPECT_EQ(narrow.get(i), expected[std::size_t(i)]) << device.device << i;
    EXPECT_NEAR(narrow.get(5) / 3.38e38, 1, 0x1p-8);
    EXPECT_TRUE(std::signbit(narrow.get(4)));
    middle.fill(std::numeric_limits<double>::quiet_NaN());
    device.kernels.convert(context, narrow, middle);
    EXPECT_TRUE(std::isnan(narrow.get(0))) << device.device;
  }
}

TEST(Elementwise, ConvertFromDoubleToBf16RoundsOnce) {
  for (const auto& device :
       test::devices_of(reference::elementwise_kernels, cpu::elementwise_kernels, test::cuda_elementwise)) {
    TestContext context;
    Buffer wide(DType::f64, 1, 3), narrow(DType::bf16, 1, 3);
    // Just above a tie by less than fp32 can tell: through fp32 it would become the tie and round down to 1.
    wide.assign({1 + 0x1p-8 + 0x1p-40, 1 + 3 * 0x1p-8 - 0x1p-40, -(1 + 0x1p-8 + 0x1p-40)});
    device.kernels.convert(context, narrow, wide);
    const std::vector<double> expected = {1 + 0x1p-7, 1 + 0x1p-7, -(1 + 0x1p-7)};
    for (std::int64_t i = 0; i < 3; ++i) EXPECT_EQ(narrow.get(i), expected[std::size_t(i)]) << device.device;
  }
}

TEST(Elementwise, FastEqualsReferenceOnOddSizes) {
  for (const DType from : kFloating) {
    for (const DType to : kFloating) {
      for (const auto& [B, T, D, padding] :
           {std::tuple{1, 0, 5, 1}, {1, 1, 1, 1}, {2, 7, 33, 1}, {1, 3, 20001, 1}, {2, 5, 40, 8}, {1, 6, 40, 0}}) {
        TestContext context;
        Buffer x(from, T, D, padding * 4, B), r(to, T, D, padding, B);
        x.randomize(1, 50);
        reference::elementwise_kernels.convert(context, r, x);
        for (const auto& device : test::fast_devices_of(cpu::elementwise_kernels, test::cuda_elementwise)) {
          Buffer c(to, T, D, padding, B), scaled(to, T, D, padding, B);
          device.kernels.convert(context, c, x);
          EXPECT_TRUE(same_bits(r, c)) << device.device << " " << name_of(from) << " to " << name_of(to);
          scaled.copy_from(r);
          reference::elementwise_kernels.scale(context, scaled, 0.37);
          device.kernels.scale(context, c, 0.37);
          EXPECT_TRUE(same_bits(scaled, c)) << device.device << " " << name_of(to);
          device.kernels.zero(context, c);
          for (const double value : c.values()) ASSERT_EQ(value, 0);
        }
      }
    }
  }
}

TEST(Elementwise, AddSumsInFp32AndRoundsOnce) {
  for (const auto& [to, from] :
       {std::pair{DType::f32, DType::f32}, {DType::f32, DType::bf16}, {DType::bf16, DType::bf16}}) {
    for (const auto& [D, padding] : {std::pair<std::int64_t, std::int64_t>{67, 0}, {67, 3}, {72, 0}, {72, 8}}) {
      for (const auto& device :
           test::devices_of(reference::elementwise_kernels, cpu::elementwise_kernels, test::cuda_elementwise)) {
        TestContext context;
        Buffer x(from, 13, D, padding), y(to, 13, D, padding);
        x.randomize(1);
        y.randomize(2);
        std::vector<double> expected = y.values();
        for (std::size_t i = 0; i < expected.size(); ++i) {
          const float sum = float(expected[i]) + float(x.get(std::int64_t(i)));
          expected[i] = to == DType::bf16 ? double(float(bf16(sum))) : double(sum);
        }
        device.kernels.add(context, y, x);
        for (std::size_t i = 0; i < expected.size(); ++i) ASSERT_EQ(y.get(std::int64_t(i)), expected[i]);
      }
    }
  }
}

TEST(Elementwise, SumIsInFp64) {
  for (const DType type : {DType::f32, DType::bf16}) {
    for (const std::int64_t n : {0, 1, 255, 256, 257, 5000}) {
      TestContext context;
      Buffer x(type, n, 1, 2);
      x.randomize(std::uint64_t(n), 1000);
      double expected = 0;
      for (std::int64_t i = 0; i < n; ++i) expected += x.get(i);
      for (const auto& device :
           test::devices_of(reference::elementwise_kernels, cpu::elementwise_kernels, test::cuda_elementwise)) {
        Buffer sum(DType::f64, 1, 1);
        device.kernels.sum(context, sum, x);
        EXPECT_NEAR(sum.get(0), expected, 1e-10 * double(n)) << device.device << " " << n;
      }
    }
  }
}

TEST(Elementwise, RejectsShapesThatDiffer) {
  for (const auto& device :
       test::devices_of(reference::elementwise_kernels, cpu::elementwise_kernels, test::cuda_elementwise)) {
    TestContext context;
    Buffer x(DType::f32, 2, 3), y(DType::f32, 3, 2);
    x.fill(0);
    EXPECT_THROW(device.kernels.convert(context, y, x), LogicError);
    EXPECT_THROW(device.kernels.add(context, y, x), LogicError);
  }
}

}  // namespace
}  // namespace flanmoe
