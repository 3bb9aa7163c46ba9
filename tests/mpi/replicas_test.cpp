// Weights that ranks must hold alike, and do not.
#include "train/replicas.hpp"

#include <gtest/gtest.h>

#include "checkpoint_fixture.hpp"

namespace flanmoe {
namespace {

using test::error_message;
using test::Rig;
using test::rig_deck;

/// Flips one bit of a weight of this rank.
void flip(const Rig& rig, const std::string& name) {
  for (std::size_t p = 0; p < rig.store.specs().size(); ++p) {
    if (rig.store.specs()[p].name != name) continue;
    static_cast<char*>(rig.store.weight(int(p)).matrix(0).data)[5] ^= 0x04;
    return;
  }
  FAIL() << "no weight " << name;
}

TEST(Replicas, OneFlippedBitIsFoundAndRankAndParameterAreNamed) {
  const Communicator world = Communicator::world();
  Rig rig(world, 1, rig_deck("adamw"));
  rig.optimizer.initialize(rig.context, 7);
  const auto compare = [&] {
    return error_message([&] { compare_replicas(rig.store, rig.communicators, rig.kernels, rig.context); });
  };
  EXPECT_EQ(compare(), "(nothing was thrown)");

  for (const char* name : {"embedding", "encoder/layer_00/expert_down"}) {
    const int rank = world.size() - 1;
    if (world.rank() == rank) flip(rig, name);
    const std::string text = compare();
    if (world.size() > 1) {
      EXPECT_NE(text.find(fmt::format("the copies of {} differ", name)), std::string::npos) << text;
      EXPECT_NE(text.find(fmt::format("on ranks [{}]", rank)), std::string::npos) << text;
    } else {
      EXPECT_EQ(text, "(nothing was thrown)");  // there is no other copy
    }
    if (world.rank() == rank) flip(rig, name);
  }
  EXPECT_EQ(compare(), "(nothing was thrown)");
}

TEST(Replicas, ExpertsOfDifferentRanksMayDiffer) {
  const Communicator world = Communicator::world();
  Rig rig(world, world.size(), rig_deck("adamw"));
  rig.optimizer.initialize(rig.context, 7);
  flip(rig, "encoder/layer_00/expert_down");  // every rank has its own experts
  EXPECT_EQ(error_message([&] { compare_replicas(rig.store, rig.communicators, rig.kernels, rig.context); }),
            "(nothing was thrown)");
}

}  // namespace
}  // namespace flanmoe
