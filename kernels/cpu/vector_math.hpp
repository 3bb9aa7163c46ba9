// Arithmetic that the compiler turns into vector code: branch-free functions of one element, to be called from plain
// loops, and sums whose order is fixed by the source, not by the width of the vectors.
#pragma once

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdint>

#include "tensor/dtype.hpp"

namespace flanmoe::cpu {

/// to = x, rounded to the type of `to`. Loops store through this function: an assignment of a bf16 object, which is
/// a structure, keeps gcc from using vectors.
inline void store(float& to, float x) { to = x; }
inline void store(double& to, double x) { to = x; }
inline void store(bf16& to, float x) {
  const auto u = std::bit_cast<std::uint32_t>(x);
  const std::uint32_t rounded = u + 0x7fffU + ((u >> 16) & 1U);
  to.bits = std::uint16_t((x != x ? u | 0x400000U : rounded) >> 16);  // NaN stays NaN
}

/// e^x: relative error below 1.2e-7 for x in [-87.3, 88.3]; inf from 88.4 on, 0 below -87.7, NaN stays NaN.
/// x = n ln2 + r with |r| <= ln2/2; e^r by the polynomial of degree 6 that is 1 at 0 and has the smallest greatest
/// relative error (2.6e-9). 2^n is made from its exponent, which ends at 0 and infinity by itself.
inline float fast_exp(float x) {
  constexpr float kRoundToInteger = 0x1.8p23F;  // adding it leaves the nearest integer in the low bits of the sum
  constexpr float kLog2e = 1.44269504088896341F;
  constexpr float kLn2High = 0x1.62ep-1F;  // 13 bits, so that n * kLn2High is exact
  constexpr float kLn2Low = 0x1.0bfbe8p-15F;
  x = x > 90.0F ? 90.0F : x;
  x = x < -90.0F ? -90.0F : x;
  const float shifted = x * kLog2e + kRoundToInteger;
  const float n = shifted - kRoundToInteger;
  const float r = (x - n * kLn2High) - n * kLn2Low;
  float p = 1.406160403906075e-3F;
  p = p * r + 8.379106940604387e-3F;
  p = p * r + 4.166476934100688e-2F;
  p = p * r + 1.666636417504786e-1F;
  p = p * r + 5.000000437117265e-1F;
  p = p * r + 1.0F;
  p = p * r + 1.0F;
  std::int32_t exponent = std::bit_cast<std::int32_t>(shifted) - (std::bit_cast<std::int32_t>(kRoundToInteger) - 127);
  exponent = std::min(std::max(exponent, 0), 255);
  return p * std::bit_cast<float>(std::uint32_t(exponent) << 23);
}

/// 2^-a for a in [0, 126], relative error below 1.2e-7; built like fast_exp, without what smaller a need not.
inline float exp2_of_minus(float a) {
  constexpr float kRoundToInteger = 0x1.8p23F + 127;  // leaves the biased exponent in the low bits
  const float shifted = kRoundToInteger - a;
  const float r = (kRoundToInteger - shifted) - a;
  float p = 1.55946775971113e-4F;
  p = p * r + 1.3406643906346029e-3F;
  p = p * r + 9.61769297472829e-3F;
  p = p * r + 5.5503105509916405e-2F;
  p = p * r + 2.4022652782877282e-1F;
  p = p * r + 6.931472149680422e-1F;
  p = p * r + 1.0F;
  return p * std::bit_cast<float>(std::bit_cast<std::uint32_t>(shifted) << 23);
}

/// gelu in its tanh form: x/2 (1 + tanh(u)) = x s with s = 1 / (1 + e^-2u) and u = sqrt(2/pi) (x + 0.044715 x^3).
/// With e = e^-|2u|, one of s and 1 - s is 1/(1+e) and the other one e/(1+e): neither cancels anywhere.
struct Gelu {
  static constexpr float two_root = 1.59576912160573071F;  // 2 sqrt(2/pi)
  static constexpr float cubic = 0.044715F;

  static float decay(float x) {  // e^-|2u|, not below 2^-126
    constexpr float scale = two_root * 1.44269504088896341F;
    const float exponent = x * (scale + scale * cubic * (x * x));
    // As integers, since NaN and floats that are not negative order like their bits.
    const std::int32_t magnitude = std::bit_cast<std::int32_t>(exponent) & 0x7fffffff;
    return exp2_of_minus(std::bit_cast<float>(std::min(magnitude, std::bit_cast<std::int32_t>(126.0F))));
  }
};

/// swish(x) = x s with s = 1 / (1 + e^-x); with e = e^-|x|, s and 1 - s are 1/(1+e) and e/(1+e) as for gelu.
struct Swish {
  static float decay(float x) {  // e^-|x|, not below 2^-126
    const float exponent = x * 1.44269504088896341F;
    const std::int32_t magnitude = std::bit_cast<std::int32_t>(exponent) & 0x7fffffff;  // see Gelu::decay
    return exp2_of_minus(std::bit_cast<float>(std::min(magnitude, std::bit_cast<std::int32_t>(126.0F))));
  }
};

/// The sum of f(i) for i in [0, n): `lanes` interleaved partial sums, then a tree over them. A fixed order, which
/// vector units of any width can follow.
template <class A, std::int64_t lanes = 256 / sizeof(A), class F>
inline A lane_sum(std::int64_t n, F&& f) {
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
