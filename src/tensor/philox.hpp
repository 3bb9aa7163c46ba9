// Counter-based random numbers: Philox4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC11).
// A number is a pure function of its key and counter, so it does not depend on ranks, threads or history.
#pragma once

#include <array>
#include <cstdint>
#include <string_view>

namespace flanmoe {

/// What a random number is for; part of the key, so that two uses never share numbers.
enum class RandomPurpose : std::uint32_t {
  init = 1,
  data_order = 2,
  data_mixture = 3,
  data_corruption = 4,
  dropout = 5,
  router = 6,
  decoding = 7,
  router_jitter = 8,
  rounding = 9,
  test = 99,
};

/// The ten-round Philox4x32 block function: 128-bit counter, 64-bit key.
std::array<std::uint32_t, 4> philox4x32(std::array<std::uint32_t, 4> counter, std::array<std::uint32_t, 2> key);

/// A stream of numbers addressed by (row, position); `seed`, purpose, step and layer select the stream.
struct RandomKey {
  std::uint64_t seed = 0;
  RandomPurpose purpose = RandomPurpose::test;
  std::uint32_t step = 0;
  std::uint32_t layer = 0;

  /// The Philox key of this stream.
  std::array<std::uint32_t, 2> philox_key() const;
  /// Words 4*block .. 4*block+3 of (row, position): the Philox block of counter {row low, row high, position, block}.
  std::array<std::uint32_t, 4> words(std::uint64_t row, std::uint32_t position, std::uint32_t block = 0) const;
  /// Uniform in [0, 1), 24 bits.
  float uniform(std::uint64_t row, std::uint32_t position) const;
  /// Uniform integer in [0, bound) without modulo bias worth speaking of (64-bit multiply-shift); bound > 0.
  std::uint64_t below(std::uint64_t bound, std::uint64_t row, std::uint32_t position) const;
};

/// 64-bit FNV-1a, used to make keys from names.
std::uint64_t hash_name(std::string_view name);

/// A keyed permutation of [0, n): a Feistel network with cycle walking. O(1) in time and memory, so any position of an
/// epoch can be read without what came before. Bijective for every key and every n >= 1.
class KeyedPermutation {
 public:
  KeyedPermutation(std::uint64_t n, std::uint64_t key);
  std::uint64_t operator()(std::uint64_t index) const;

 private:
  std::uint64_t n_;
  std::uint64_t key_;
  int half_bits_;
};

}  // namespace flanmoe
