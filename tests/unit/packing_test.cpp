#include "data/packing.hpp"

#include <gtest/gtest.h>

namespace flanmoe {
namespace {

TEST(RowPacker, BeginsARowWhenEitherSideDoesNotFit) {
  RowPacker packer(3, 10, 4);
  EXPECT_EQ(packer.place(6, 1, false), 0);
  EXPECT_EQ(packer.place(4, 3, false), 0);  // both sides exactly full
  EXPECT_EQ(packer.place(2, 3, false), 1);
  EXPECT_EQ(packer.place(2, 2, false), 2);  // room for inputs only
  EXPECT_EQ(packer.place(8, 1, false), 2);
  EXPECT_EQ(packer.place(1, 1, false), -1);  // room for targets only, and no row is left
}

TEST(RowPacker, NeverGoesBackToAnEarlierRow) {
  RowPacker packer(3, 10, 10);
  EXPECT_EQ(packer.place(3, 3, false), 0);
  EXPECT_EQ(packer.place(9, 9, false), 1);
  EXPECT_EQ(packer.place(2, 2, false), 2);  // would have fitted into row 0
}

TEST(RowPacker, KeepsARowForWhatStandsAlone) {
  RowPacker packer(3, 10, 10);
  EXPECT_EQ(packer.place(1, 1, false), 0);
  EXPECT_EQ(packer.place(2, 2, true), 1);
  EXPECT_EQ(packer.place(1, 1, false), 2);
  EXPECT_EQ(packer.place(2, 2, true), -1);
}

}  // namespace
}  // namespace flanmoe
