// Philox words in vector code.
#pragma once

#include <array>
#include <cstdint>

namespace flanmoe::cpu {

inline constexpr std::int64_t kPhiloxLanes = 16;  // Philox blocks that are computed side by side

/// words[0 .. 4*blocks) of the stream of (row, position) from block `first` on; writes whole groups of kPhiloxLanes
/// blocks. The same numbers as RandomKey::words, which the tests compare.
inline void philox_words(std::uint32_t* words, std::array<std::uint32_t, 2> key, std::uint64_t row,
                         std::uint32_t position, std::uint32_t first, std::int64_t blocks) {
  for (std::int64_t b = 0; b < blocks; b += kPhiloxLanes) {
#pragma omp simd
    for (std::int64_t l = 0; l < kPhiloxLanes; ++l) {
      std::uint32_t c0 = std::uint32_t(row), c1 = std::uint32_t(row >> 32), c2 = position;
      std::uint32_t c3 = first + std::uint32_t(b + l);
      std::uint32_t k0 = key[0], k1 = key[1];
      for (int round = 0; round < 10; ++round) {
        const std::uint64_t p0 = std::uint64_t{0xD2511F53U} * c0;
        const std::uint64_t p1 = std::uint64_t{0xCD9E8D57U} * c2;
        c0 = std::uint32_t(p1 >> 32) ^ c1 ^ k0;
        c1 = std::uint32_t(p1);
        c2 = std::uint32_t(p0 >> 32) ^ c3 ^ k1;
        c3 = std::uint32_t(p0);
        k0 += 0x9E3779B9U;
        k1 += 0xBB67AE85U;
      }
      words[4 * (b + l)] = c0;
      words[4 * (b + l) + 1] = c1;
      words[4 * (b + l) + 2] = c2;
      words[4 * (b + l) + 3] = c3;
    }
  }
}

}  // namespace flanmoe::cpu
