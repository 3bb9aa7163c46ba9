#include "tensor/philox.hpp"

#include "base/error.hpp"

namespace flanmoe {
namespace {

constexpr std::uint32_t kMultiplier0 = 0xD2511F53U;
constexpr std::uint32_t kMultiplier1 = 0xCD9E8D57U;
constexpr std::uint32_t kWeyl0 = 0x9E3779B9U;
constexpr std::uint32_t kWeyl1 = 0xBB67AE85U;

std::uint32_t high_word(std::uint64_t x) { return std::uint32_t(x >> 32); }

}  // namespace

std::array<std::uint32_t, 4> philox4x32(std::array<std::uint32_t, 4> counter, std::array<std::uint32_t, 2> key) {
  for (int round = 0; round < 10; ++round) {
    const std::uint64_t product0 = std::uint64_t{kMultiplier0} * counter[0];
    const std::uint64_t product1 = std::uint64_t{kMultiplier1} * counter[2];
    counter = {high_word(product1) ^ counter[1] ^ key[0], std::uint32_t(product1),
               high_word(product0) ^ counter[3] ^ key[1], std::uint32_t(product0)};
    key[0] += kWeyl0;
    key[1] += kWeyl1;
  }
  return counter;
}

std::array<std::uint32_t, 2> RandomKey::philox_key() const {
  // FNV-1a over (purpose, step, layer) keeps streams apart; the seed is mixed in by xor.
  std::uint64_t hash = 0xcbf29ce484222325ULL;
  for (const std::uint32_t word : {std::uint32_t(purpose), step, layer}) {
    for (int byte = 0; byte < 4; ++byte) {
      hash = (hash ^ ((word >> (8 * byte)) & 0xffU)) * 0x100000001b3ULL;
    }
  }
  hash ^= seed * 0x9E3779B97F4A7C15ULL;
  return {std::uint32_t(hash), high_word(hash)};
}

std::array<std::uint32_t, 4> RandomKey::words(std::uint64_t row, std::uint32_t position, std::uint32_t block) const {
  return philox4x32({std::uint32_t(row), high_word(row), position, block}, philox_key());
}

float RandomKey::uniform(std::uint64_t row, std::uint32_t position) const {
  return float(words(row, position)[0] >> 8) * 0x1.0p-24F;
}

std::uint64_t RandomKey::below(std::uint64_t bound, std::uint64_t row, std::uint32_t position) const {
  FLANMOE_EXPECT(bound > 0, "no integer is below 0");
  const auto w = words(row, position);
  const std::uint64_t random = (std::uint64_t{w[0]} << 32) | w[1];
  return std::uint64_t((static_cast<unsigned __int128>(random) * bound) >> 64);
}

std::uint64_t hash_name(std::string_view name) {
  std::uint64_t hash = 0xcbf29ce484222325ULL;
  for (const char c : name) hash = (hash ^ std::uint8_t(c)) * 0x100000001b3ULL;
  return hash;
}

KeyedPermutation::KeyedPermutation(std::uint64_t n, std::uint64_t key) : n_(n), key_(key), half_bits_(1) {
  FLANMOE_EXPECT(n > 0, "a permutation needs at least one element");
  while (half_bits_ < 32 && (std::uint64_t{1} << (2 * half_bits_)) < n) ++half_bits_;
}

std::uint64_t KeyedPermutation::operator()(std::uint64_t index) const {
  FLANMOE_EXPECT(index < n_, "index {} of a permutation of {}", index, n_);
  const std::uint64_t mask = (std::uint64_t{1} << half_bits_) - 1;
  // Four Feistel rounds permute [0, 4^half_bits) and fewer than four walks are expected until a value falls below n.
  std::uint64_t value = index;
  do {
    std::uint64_t left = value >> half_bits_;
    std::uint64_t right = value & mask;
    for (std::uint32_t round = 0; round < 4; ++round) {
      const auto w =
          philox4x32({std::uint32_t(right), high_word(right), round, 0}, {std::uint32_t(key_), high_word(key_)});
      const std::uint64_t next = left ^ (w[0] & mask);
      left = right;
      right = next;
    }
    value = (left << half_bits_) | right;
  } while (value >= n_);
  return value;
}

}  // namespace flanmoe
