// Weights that ranks must hold alike, and do not.
#include "train/replicas.hpp"

#include <gtest/gtest.h>

#include <functional>
#include <optional>

#include "checkpoint_fixture.hpp"
#include "full_batch.hpp"
#include "model_fixture.hpp"
#include "train/trainer.hpp"

namespace flanmoe {
namespace {

using test::Rig;
using test::rig_deck;

/// Flips one bit of a weight of this rank.
void flip(const ParameterStore& store, const std::string& name) {
  for (std::size_t p = 0; p < store.specs().size(); ++p) {
    if (store.specs()[p].name != name) continue;
    static_cast<char*>(store.weight(int(p)).matrix(0).data)[5] ^= 0x04;
    return;
  }
  FAIL() << "no weight " << name;
}

TEST(Replicas, OneFlippedBitIsFoundAndRankAndParameterAreNamed) {
  const Communicator world = Communicator::world();
  Rig rig(world, 1, rig_deck("adamw"));
  rig.optimizer.initialize(rig.context, 7);
  const auto compare = [&] { return replica_difference(rig.store, rig.communicators, rig.kernels, rig.context); };
  EXPECT_EQ(compare(), "");

  for (const char* name : {"embedding", "encoder/layer_00/expert_down"}) {
    const int rank = world.size() - 1;
    if (world.rank() == rank) flip(rig.store, name);
    const std::string text = compare();  // on every rank, also those with other experts
    if (world.size() > 1) {
      EXPECT_NE(text.find(fmt::format("the copies of {} differ", name)), std::string::npos) << text;
      EXPECT_NE(text.find(fmt::format("on ranks [{}]", rank)), std::string::npos) << text;
    } else {
      EXPECT_EQ(text, "");  // there is no other copy
    }
    if (world.rank() == rank) flip(rig.store, name);
  }
  EXPECT_EQ(compare(), "");
}

TEST(Replicas, ExpertsOfDifferentRanksMayDiffer) {
  const Communicator world = Communicator::world();
  Rig rig(world, world.size(), rig_deck("adamw"));
  rig.optimizer.initialize(rig.context, 7);
  flip(rig.store, "encoder/layer_00/expert_down");  // every rank has its own experts
  EXPECT_EQ(replica_difference(rig.store, rig.communicators, rig.kernels, rig.context), "");
}

/// A step of a run of 10 that saves every 4 and compares every 3; "": it was taken.
class TrainerThatCompares {
 public:
  explicit TrainerThatCompares(const Communicator& world) : grid_(world.size(), world.rank(), 1) {
    deck_ = testing::tiny_deck(true);
    deck_.run.steps = 10;
    deck_.batch.rows = 12;
    deck_.checkpoint.every = 4;
    deck_.faults.compare_every = 3;
    communicators_.emplace(Communicators::make(world, grid_));
    trainer_.emplace(deck_, grid_, *communicators_);
    trainer_->commit_memory();
    trainer_->start_from_seed();
    const RankRows rows = RankRows::of(deck_, grid_);
    batches_.push_back(testing::full_batch(deck_, rows.first, rows.rows));
  }
  std::string step(std::int64_t step, bool stop_asked = false) {
    return said([&] { trainer_->step(step, batches_, stop_asked); }, step, stop_asked);
  }
  std::string skip(std::int64_t step) {
    return said([&] { trainer_->skip(step, false); }, step, false);
  }
  Trainer& trainer() { return *trainer_; }

 private:
  static std::string said(const std::function<void()>& f, std::int64_t step, bool stop_asked) {
    try {
      f();
    } catch (const BadStep& bad) {
      EXPECT_EQ(bad.fault(), Fault::machine);
      EXPECT_EQ(bad.step(), step);
      EXPECT_EQ(bad.stop_asked(), stop_asked);
      return bad.what();
    }
    return "";
  }

  ProcessGrid grid_;
  Deck deck_;
  std::optional<Communicators> communicators_;
  std::optional<Trainer> trainer_;
  std::vector<PackedBatch> batches_;
};

TEST(Replicas, AreComparedWhileTheyAreInUseAndBeforeEveryCheckpoint) {
  const Communicator world = Communicator::world();
  if (world.size() == 1) GTEST_SKIP() << "there is no other copy";
  TrainerThatCompares run(world);
  const bool last = world.rank() == world.size() - 1;
  const auto flip_on_one = [&] {
    if (last) flip(run.trainer().store(), "embedding");
  };
  flip_on_one();
  EXPECT_EQ(run.step(0), "") << "not one of those that compare";  // and its update writes all copies anew
  EXPECT_EQ(run.step(2), "");

  struct Case {
    std::int64_t step = 0;  // from 0
    bool stop_asked = false;
  };
  flip_on_one();
  EXPECT_NE(run.skip(0).find("the copies of embedding differ"), std::string::npos) << "a checkpoint may follow";
  flip_on_one();
  EXPECT_EQ(run.skip(0), "");
  // Third and sixth step; those before a checkpoint; the last one; the one in which some rank wants to stop.
  for (const Case& c : {Case{2}, {5}, {3}, {7}, {9}, {0, true}}) {
    const std::uint64_t before = run.trainer().state_hash();
    flip_on_one();
    const std::string why = run.step(c.step, c.stop_asked);
    EXPECT_NE(why.find("the copies of embedding differ"), std::string::npos) << "step " << c.step << ": " << why;
    EXPECT_NE(why.find("stopped before the update"), std::string::npos) << why;
    EXPECT_EQ(run.trainer().state_hash(), before) << "step " << c.step;
    flip_on_one();
    EXPECT_EQ(run.step(c.step, c.stop_asked), "") << "as if nothing had happened";
  }
}

}  // namespace
}  // namespace flanmoe
