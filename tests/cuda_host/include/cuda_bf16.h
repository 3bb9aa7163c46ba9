// The conversions of CUDA's bf16 that flanmoe uses.
#pragma once

#include <cstdint>

#include "tensor/dtype.hpp"

struct __nv_bfloat16 {
  std::uint16_t bits;
};
inline __nv_bfloat16 __float2bfloat16_rn(float x) { return {flanmoe::bf16(x).bits}; }
inline float __bfloat162float(__nv_bfloat16 x) {
  flanmoe::bf16 value;
  value.bits = x.bits;
  return float(value);
}
inline unsigned short __bfloat16_as_ushort(__nv_bfloat16 x) { return x.bits; }
inline __nv_bfloat16 __ushort_as_bfloat16(unsigned short x) { return {x}; }
