#include "parallel/process_grid.hpp"

#include <gtest/gtest.h>

namespace flanmoe {
namespace {

TEST(ProcessGrid, NeighboursShareAnExpertGroup) {
  // 6 ranks, expert degree 2: expert groups {0,1} {2,3} {4,5}; replica groups {0,2,4} {1,3,5}.
  const ProcessGrid grid(6, 3, 2);

  EXPECT_EQ(grid.data_size(), 3);
  EXPECT_EQ(grid.data_rank(), 1);
  EXPECT_EQ(grid.expert_rank(), 1);
  const ShardCoordinates c = grid.coordinates();
  EXPECT_EQ(c.world_size, 6);
  EXPECT_EQ(c.world_rank, 3);
  EXPECT_EQ(c.data_size, 3);
  EXPECT_EQ(c.data_rank, 1);
  EXPECT_EQ(c.expert_size, 2);
  EXPECT_EQ(c.expert_rank, 1);
}

TEST(ProcessGrid, EveryRankHasItsOwnPlace) {
  for (int rank = 0; rank < 12; ++rank) {
    const ProcessGrid grid(12, rank, 4);
    EXPECT_EQ(grid.data_rank() * grid.expert_size() + grid.expert_rank(), rank);
    EXPECT_LT(grid.data_rank(), grid.data_size());
  }
}

TEST(ProcessGrid, RefusesADegreeThatDoesNotDivideWithTheArithmetic) {
  try {
    const ProcessGrid grid(8, 0, 3);
    FAIL() << "3 does not divide 8";
  } catch (const UsageError& error) {
    const std::string text = error.what();
    EXPECT_NE(text.find("parallel.expert = 3"), std::string::npos) << text;
    EXPECT_NE(text.find("8 = 2*3 + 2"), std::string::npos) << text;
    EXPECT_NE(text.find("1, 2, 4, 8"), std::string::npos) << text;
  }
  EXPECT_THROW(ProcessGrid(4, 0, 0), UsageError);
  EXPECT_THROW(ProcessGrid(4, 0, -2), UsageError);
  EXPECT_THROW(ProcessGrid(4, 0, 8), UsageError);
}

}  // namespace
}  // namespace flanmoe
