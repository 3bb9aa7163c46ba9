#include "tensor/ownership.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <chrono>
#include <numeric>
#include <random>
#include <vector>

namespace flanmoe {
namespace {

using Blocks = std::vector<std::int64_t>;

/// The owners of a bucket's blocks.
std::vector<int> share_out(Ownership& ownership, const Blocks& sizes) {
  ownership.begin_bucket(std::accumulate(sizes.begin(), sizes.end(), std::int64_t{0}));
  std::vector<int> owners;
  for (const std::int64_t size : sizes) owners.push_back(ownership.next(size));
  return owners;
}

TEST(Ownership, CutsABucketIntoEqualSharesAtPointsThatMoveThroughTheBlocks) {
  Ownership ownership(3);
  // 60 elements, shares of 20; the points: 0, 10 + 10/6, 20 + 15/3, 35 + 15*35/60, 50 + 10*5/6.
  EXPECT_EQ(share_out(ownership, {10, 10, 15, 15, 10}), (std::vector<int>{0, 0, 1, 2, 2}));
  EXPECT_EQ(ownership.owned(), (Blocks{20, 15, 25}));
}

TEST(Ownership, TheNextBucketEvensOutWhatTheOnesBeforeLeft) {
  Ownership ownership(3);
  share_out(ownership, {10, 10, 15, 15, 10});
  // A share of 90 is 30: 10, 15 and 5 are lacking; the points are 0, 5 + 5/6, 10 + 10/6, 15 + 15/6, 20 + 20/6, 25 +
  // 25/6.
  EXPECT_EQ(share_out(ownership, {5, 5, 5, 5, 5, 5}), (std::vector<int>{0, 0, 1, 1, 1, 2}));
  EXPECT_EQ(ownership.owned(), (Blocks{30, 30, 30}));
}

TEST(Ownership, BucketsOfFewBlocksGoToRanksThatGotLittleSoFar) {
  Ownership ownership(6);
  EXPECT_EQ(share_out(ownership, {8, 8}), (std::vector<int>{0, 4}));  // points 0 and 12 of 16
  EXPECT_EQ(share_out(ownership, {8, 8}), (std::vector<int>{1, 5}));  // of four ranks, the first and the fourth
  EXPECT_EQ(share_out(ownership, {8, 8}), (std::vector<int>{2, 3}));
}

TEST(Ownership, NobodyOwnsMoreThanAShareOfTheBucketsSoFarAndABlock) {
  std::mt19937 random(3);
  for (const int ranks : {1, 2, 3, 7, 64, 1000, 2048}) {
    Ownership ownership(ranks);
    std::int64_t all = 0, largest = 0;
    for (int bucket = 0; bucket < 50; ++bucket) {
      Blocks sizes(1 + random() % 700);
      for (std::int64_t& size : sizes) size = 1 + std::int64_t(random() % (1U << (random() % 24)));
      all = std::accumulate(sizes.begin(), sizes.end(), all);
      largest = std::max(largest, *std::max_element(sizes.begin(), sizes.end()));
      const std::vector<int> owners = share_out(ownership, sizes);
      EXPECT_TRUE(std::is_sorted(owners.begin(), owners.end()));
      const auto& owned = ownership.owned();
      EXPECT_LE(*std::max_element(owned.begin(), owned.end()), all / ranks + largest) << ranks << " ranks";
      EXPECT_EQ(std::accumulate(owned.begin(), owned.end(), std::int64_t{0}), all);
    }
  }
}

TEST(Ownership, FewBlocksAreSpreadEvenlyAtEveryDistanceOfRanks) {
  // Halving at a distance hands what ranks with that bit own to ranks with that bit.
  for (const int ranks : {256, 2048}) {
    for (const int blocks : {64, 448}) {
      if (blocks > ranks) continue;
      Ownership ownership(ranks);
      for (int bucket = 0; bucket < 48; ++bucket) {
        const std::vector<int> owners = share_out(ownership, Blocks(std::size_t(blocks), 655360));
        for (int distance = 1; distance < ranks; distance *= 2) {
          const auto with = std::count_if(owners.begin(), owners.end(), [&](int r) { return (r & distance) != 0; });
          EXPECT_NEAR(double(with), blocks / 2.0, blocks / 4.0)
              << blocks << " blocks on " << ranks << " ranks, bucket " << bucket << ", distance " << distance;
        }
      }
    }
  }
}

TEST(Ownership, TheLargestGroupsAndMatricesAreCountedExactly) {
  // 2^20 ranks and 2^41 elements: products of these do not fit 64 bits.
  Ownership ownership(1 << 20);
  const Blocks bucket(1 << 12, std::int64_t{1} << 28);
  for (int b = 0; b < 2; ++b) share_out(ownership, bucket);
  const auto& owned = ownership.owned();
  EXPECT_EQ(*std::max_element(owned.begin(), owned.end()), std::int64_t{1} << 28);
}

}  // namespace
}  // namespace flanmoe
