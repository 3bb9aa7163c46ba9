#include "kernels/cpu/vector_math.hpp"

#include <gtest/gtest.h>

#include <limits>

namespace flanmoe {
namespace {

TEST(VectorMath, ExpIsWithinItsBoundOverNormalResults) {
  double worst = 0;
  // Every 4099th float from -87.3 to 88.3, of both signs and down to the smallest.
  for (const float end : {-87.3F, 88.3F}) {
    const auto last = std::bit_cast<std::uint32_t>(end);
    for (std::uint32_t bits = last & 0x80000000U; bits <= last; bits += 4099) {
      const auto x = std::bit_cast<float>(bits);
      const double exact = std::exp(double(x));
      worst = std::max(worst, std::abs(double(cpu::fast_exp(x)) - exact) / exact);
    }
  }
  EXPECT_LT(worst, 1.2e-7);
  EXPECT_GT(worst, 1e-9) << "the comparison does not see rounding";
}

TEST(VectorMath, ExpBehavesAtTheEnds) {
  constexpr float inf = std::numeric_limits<float>::infinity();
  EXPECT_EQ(cpu::fast_exp(0.0F), 1.0F);
  EXPECT_EQ(cpu::fast_exp(inf), inf);
  EXPECT_EQ(cpu::fast_exp(89.0F), inf);
  EXPECT_EQ(cpu::fast_exp(-inf), 0.0F);
  EXPECT_TRUE(std::isnan(cpu::fast_exp(std::numeric_limits<float>::quiet_NaN())));
  EXPECT_TRUE(std::isfinite(cpu::fast_exp(88.37F)));
  for (float x = -87.3F; x > -110.0F; x -= 0.01F) EXPECT_NEAR(cpu::fast_exp(x), std::exp(double(x)), 9e-39) << x;
}

TEST(VectorMath, PowersOfTwoAreWithinTheirBound) {
  for (double a = 0; a <= 126; a += 0.00731) {
    const double exact = std::exp2(-double(float(a)));
    ASSERT_LT(std::abs(double(cpu::exp2_of_minus(float(a))) - exact) / exact, 1.2e-7) << a;
  }
  EXPECT_EQ(cpu::exp2_of_minus(0.0F), 1.0F);
  EXPECT_EQ(cpu::exp2_of_minus(126.0F), 0x1p-126F);
}

TEST(VectorMath, LaneSumAddsEveryElementOnce) {
  for (const std::int64_t n : {0, 1, 31, 32, 63, 64, 65, 127, 128, 1000}) {
    EXPECT_EQ(cpu::lane_sum<float>(n, [](std::int64_t i) { return float(i + 1); }), float(n * (n + 1) / 2));
    EXPECT_EQ(cpu::lane_sum<double>(n, [](std::int64_t i) { return double(i + 1); }), double(n * (n + 1) / 2));
  }
}

}  // namespace
}  // namespace flanmoe
