// Errors of one rank reach all ranks.
#include "parallel/together.hpp"

#include <gtest/gtest.h>

#include "base/error.hpp"

namespace flanmoe {
namespace {

TEST(Together, NothingHappensWhenNoRankFails) {
  const auto world = Communicator::world();
  int calls = 0;

  together(world, [&] { ++calls; });

  EXPECT_EQ(calls, 1);
}

TEST(Together, ErrorOfTheLowestRankIsThrownOnAll) {
  const auto world = Communicator::world();
  const int last = world.size() - 1;

  try {
    together(world, [&] {
      if (world.rank() == last) fail("shard {} is damaged", 7);
    });
    FAIL() << "no error on rank " << world.rank();
  } catch (const UsageError&) {
    FAIL() << "wrong class";
  } catch (const Error& error) {
    EXPECT_EQ(std::string(error.what()).find("shard 7 is damaged"), 0U) << error.what();
    EXPECT_EQ(std::string(error.what()).find(fmt::format("on rank {}", last)) != std::string::npos, world.size() > 1);
  }
}

TEST(Together, RootAloneRunsAndItsUsageErrorStaysOne) {
  const auto world = Communicator::world();
  int calls = 0;

  EXPECT_THROW(on_root(world,
                       [&] {
                         ++calls;
                         usage_fail("wrong deck");
                       }),
               UsageError);

  EXPECT_EQ(calls, world.rank() == 0 ? 1 : 0);
}

}  // namespace
}  // namespace flanmoe
