// Input and target as one sequence, against sequences written out by hand.
#include "model/joined.hpp"

#include <gtest/gtest.h>

#include "base/error.hpp"

namespace flanmoe {
namespace {

using Ids = std::vector<std::int32_t>;

/// Two rows: (20 21 1 -> 30 1) and (-> 40 41 1), then (22 1 -> 50 1).
PackedBatch two_rows() {
  PackedBatch batch;
  batch.encoder.token_T = {20, 21, 1, 22, 1};
  batch.encoder.row_first = {0, 3, 5};
  batch.encoder.segment_begin_S = {0, 3, 3};
  batch.encoder.segment_count_S = {3, 0, 2};
  batch.decoder.token_T = {0, 30, 0, 40, 41, 0, 50};
  batch.decoder.row_first = {0, 5, 7};
  batch.decoder.segment_begin_S = {0, 2, 5};
  batch.decoder.segment_count_S = {2, 3, 2};
  batch.target_T = {30, 1, 40, 41, 1, 50, 1};
  return batch;
}

TEST(Joined, SequencesArePadInputAndTargetsButTheLast) {
  JoinedBatch joined;
  joined.build(two_rows(), {}, true);
  EXPECT_EQ(joined.side.token_T, (Ids{0, 20, 21, 1, 30, 0, 40, 41, 0, 22, 1, 50}));
  EXPECT_EQ(joined.side.row_first, (std::vector<std::int64_t>{0, 8, 12}));
  EXPECT_EQ(joined.side.segment_begin_S, (Ids{0, 5, 8}));
  EXPECT_EQ(joined.side.segment_count_S, (Ids{5, 3, 4}));
  EXPECT_EQ(joined.prefix_S, (Ids{4, 1, 3}));
  // The token at place_T[i] is the one before target i.
  EXPECT_EQ(joined.place_T, (Ids{3, 4, 5, 6, 7, 10, 11}));
}

TEST(Joined, WithoutAPrefixAllIsCausal) {
  JoinedBatch joined;
  joined.build(two_rows(), {}, false);
  EXPECT_TRUE(joined.prefix_S.empty());
}

TEST(Joined, AnInputMayComeBeforeSeveralTargets) {
  JoinedBatch joined;
  joined.build(two_rows(), {0, 0, 2}, true);
  EXPECT_EQ(joined.side.token_T, (Ids{0, 20, 21, 1, 30, 0, 20, 21, 1, 40, 41, 0, 22, 1, 50}));
  EXPECT_EQ(joined.place_T, (Ids{3, 4, 8, 9, 10, 13, 14}));
  EXPECT_THROW(joined.build(two_rows(), {0, 0, 3}, true), LogicError);
}

TEST(Joined, RowsMayBeEmpty) {
  PackedBatch batch;
  batch.encoder.row_first = batch.decoder.row_first = {0, 0, 0};
  JoinedBatch joined;
  joined.build(batch, {}, true);
  EXPECT_EQ(joined.side.row_first, (std::vector<std::int64_t>{0, 0, 0}));
  EXPECT_TRUE(joined.place_T.empty());
}

TEST(Joined, LimitsHoldBothSidesInOneRow) {
  const BatchLimits joined =
      joined_limits({.rows = 3, .encoder_tokens = 30, .decoder_tokens = 12, .longest_input = 10, .longest_target = 4});
  EXPECT_EQ(joined.rows, 3);
  EXPECT_EQ(joined.encoder_tokens, 0);
  EXPECT_EQ(joined.decoder_tokens, 42);
  EXPECT_EQ(joined.longest_target, 14);
}

}  // namespace
}  // namespace flanmoe
