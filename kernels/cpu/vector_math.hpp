// Arithmetic that the compiler turns into vector code: branch-free functions of one element, to be called from plain
// loops, and sums whose order is fixed by the source, not by the width of the vectors.
#pragma once

#include <bit>
#include <cmath>
#include <cstdint>

namespace flanmoe::cpu {

/// e^x to within 2 units in the last place (relative 2.4e-7) on all of fp32, where the result is a normal number;
/// below that (x < -87.3) it fades to 0 with an absolute error under 2e-45. e^inf = inf, e^-inf = 0, NaN stays NaN.
/// x = n ln2 + r with |r| <= ln2/2; e^r by its power series up to r^7 (remainder 5e-9); 2^n in two steps, since n
/// reaches beyond the exponents of normal numbers at both ends.
inline float fast_exp(float x) {
  constexpr float kRoundToInteger = 0x1.8p23F;  // adding it leaves the nearest integer in the low bits of the sum
  constexpr float kLog2e = 1.44269504088896341F;
  constexpr float kLn2High = 0x1.62ep-1F;  // 12 bits, so that n * kLn2High is exact
  constexpr float kLn2Low = 0x1.0bfbe8p-15F;
  x = x > 88.8F ? 88.8F : x;
  x = x < -104.0F ? -104.0F : x;
  const float shifted = x * kLog2e + kRoundToInteger;
  const float n = shifted - kRoundToInteger;
  const float r = (x - n * kLn2High) - n * kLn2Low;
  float series = 1.0F / 5040;
  series = series * r + 1.0F / 720;
  series = series * r + 1.0F / 120;
  series = series * r + 1.0F / 24;
  series = series * r + 1.0F / 6;
  series = series * r + 1.0F / 2;
  series = series * r + 1.0F;
  series = series * r + 1.0F;
  const std::int32_t power = std::bit_cast<std::int32_t>(shifted) - std::bit_cast<std::int32_t>(kRoundToInteger);
  const std::int32_t half = power >> 1;
  const float scale1 = std::bit_cast<float>(std::uint32_t(half + 127) << 23);
  const float scale2 = std::bit_cast<float>(std::uint32_t(power - half + 127) << 23);
  return series * scale1 * scale2;
}

/// 1 / (1 + e^-x), relative error below 4e-7 where the result is a normal number.
inline float fast_sigmoid(float x) { return 1.0F / (1.0F + fast_exp(-x)); }

/// gelu in its tanh form, x/2 (1 + tanh(u)) = x sigmoid(2u) with u = sqrt(2/pi) (x + 0.044715 x^3). The sigmoid does
/// not cancel for negative x as 1 + tanh does.
struct GeluConstants {
  static constexpr float two_root = 1.59576912160573071F;  // 2 sqrt(2/pi)
  static constexpr float cubic = 0.044715F;
};
inline float gelu_argument(float x) { return GeluConstants::two_root * x * (1.0F + GeluConstants::cubic * x * x); }
inline float gelu_sigmoid(float x) { return fast_sigmoid(gelu_argument(x)); }

/// The sum of f(i) for i in [0, n): `lanes` interleaved partial sums, then a tree over them. A fixed order, which
/// vector units of any width can follow.
template <class A, class F>
inline A lane_sum(std::int64_t n, F&& f) {
  constexpr std::int64_t lanes = 256 / sizeof(A);
  A partial[lanes] = {};
  std::int64_t i = 0;
  for (; i + lanes <= n; i += lanes) {
#pragma omp simd
    for (std::int64_t l = 0; l < lanes; ++l) partial[l] += f(i + l);
  }
  const std::int64_t rest = n - i;
#pragma omp simd
  for (std::int64_t l = 0; l < rest; ++l) partial[l] += f(i + l);
  for (std::int64_t width = lanes / 2; width > 0; width /= 2) {
#pragma omp simd
    for (std::int64_t l = 0; l < width; ++l) partial[l] += partial[l + width];
  }
  return partial[0];
}

}  // namespace flanmoe::cpu
