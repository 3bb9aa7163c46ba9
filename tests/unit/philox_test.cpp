#include "tensor/philox.hpp"

#include <gtest/gtest.h>

#include <cstdint>
#include <set>
#include <vector>

namespace flanmoe {
namespace {

// Known-answer vectors published with Random123 (kat_vectors, philox4x32 10 rounds).
TEST(Philox, MatchesPublishedVectors) {
  EXPECT_EQ(philox4x32({0, 0, 0, 0}, {0, 0}),
            (std::array<std::uint32_t, 4>{0x6627e8d5U, 0xe169c58dU, 0xbc57ac4cU, 0x9b00dbd8U}));
  EXPECT_EQ(philox4x32({0xffffffffU, 0xffffffffU, 0xffffffffU, 0xffffffffU}, {0xffffffffU, 0xffffffffU}),
            (std::array<std::uint32_t, 4>{0x408f276dU, 0x41c83b0eU, 0xa20bc7c6U, 0x6d5451fdU}));
  EXPECT_EQ(philox4x32({0x243f6a88U, 0x85a308d3U, 0x13198a2eU, 0x03707344U}, {0xa4093822U, 0x299f31d0U}),
            (std::array<std::uint32_t, 4>{0xd16cfe09U, 0x94fdccebU, 0x5001e420U, 0x24126ea1U}));
}

TEST(Philox, StreamsOfDifferentPurposeStepOrLayerDiffer) {
  const RandomKey base{7, RandomPurpose::dropout, 3, 2};
  std::set<std::uint32_t> seen{base.words(5, 6)[0]};
  for (const RandomKey& key :
       {RandomKey{8, RandomPurpose::dropout, 3, 2}, RandomKey{7, RandomPurpose::router, 3, 2},
        RandomKey{7, RandomPurpose::dropout, 4, 2}, RandomKey{7, RandomPurpose::dropout, 3, 1}}) {
    EXPECT_TRUE(seen.insert(key.words(5, 6)[0]).second);
  }
}

TEST(Philox, BelowStaysBelowAndReachesEveryValue) {
  const RandomKey key{1, RandomPurpose::test, 0, 0};
  std::set<std::uint64_t> seen;
  for (std::uint32_t i = 0; i < 400; ++i) {
    const std::uint64_t value = key.below(7, 0, i);
    ASSERT_LT(value, 7U);
    seen.insert(value);
  }
  EXPECT_EQ(seen.size(), 7U);
}

TEST(KeyedPermutation, IsABijectionForEverySize) {
  for (const std::uint64_t n : {1U, 2U, 3U, 4U, 5U, 16U, 17U, 100U, 1000U, 4097U}) {
    const KeyedPermutation permutation(n, 42 + n);
    std::vector<bool> hit(n, false);
    for (std::uint64_t i = 0; i < n; ++i) {
      const std::uint64_t j = permutation(i);
      ASSERT_LT(j, n);
      ASSERT_FALSE(hit[j]) << "n " << n << " value " << j << " twice";
      hit[j] = true;
    }
  }
}

TEST(KeyedPermutation, DependsOnTheKeyAndMovesElements) {
  const KeyedPermutation a(1000, 1);
  const KeyedPermutation b(1000, 2);
  int equal = 0;
  int fixed = 0;
  for (std::uint64_t i = 0; i < 1000; ++i) {
    equal += a(i) == b(i) ? 1 : 0;
    fixed += a(i) == i ? 1 : 0;
  }
  EXPECT_LT(equal, 20);
  EXPECT_LT(fixed, 20);
}

}  // namespace
}  // namespace flanmoe
