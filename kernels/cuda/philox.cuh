// Philox4x32-10 on the device: the same numbers as RandomKey gives.
#pragma once

#include "kernels/cuda/device.cuh"
#include "tensor/philox.hpp"

namespace flanmoe::cuda {

struct PhiloxKey {
  std::uint32_t low, high;
  explicit PhiloxKey(const RandomKey& key) : low(key.philox_key()[0]), high(key.philox_key()[1]) {}
};

/// RandomKey::words(row, position, block).
__device__ inline void philox_block(std::uint32_t (&words)[4], PhiloxKey key, std::uint64_t row, std::uint32_t position,
                                    std::uint32_t block) {
  std::uint32_t c0 = std::uint32_t(row), c1 = std::uint32_t(row >> 32U), c2 = position, c3 = block;
#pragma unroll
  for (int round = 0; round < 10; ++round) {
    const std::uint32_t high0 = __umulhi(0xD2511F53U, c0), low0 = 0xD2511F53U * c0;
    const std::uint32_t high1 = __umulhi(0xCD9E8D57U, c2), low1 = 0xCD9E8D57U * c2;
    c0 = high1 ^ c1 ^ key.low;
    c1 = low1;
    c2 = high0 ^ c3 ^ key.high;
    c3 = low0;
    key.low += 0x9E3779B9U;
    key.high += 0xBB67AE85U;
  }
  words[0] = c0;
  words[1] = c1;
  words[2] = c2;
  words[3] = c3;
}

}  // namespace flanmoe::cuda
