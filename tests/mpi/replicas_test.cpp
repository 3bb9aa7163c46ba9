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

std::string difference_in(Rig& rig) {
  return replica_difference(rig.store, rig.optimizer, rig.communicators, rig.kernels, rig.context);
}

TEST(Replicas, OneFlippedBitIsFoundAndRankAndParameterAreNamed) {
  const Communicator world = Communicator::world();
  Rig rig(world, 1, rig_deck("adamw"));
  rig.optimizer.initialize(rig.context, 7);
  const auto compare = [&] { return difference_in(rig); };
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
  EXPECT_EQ(difference_in(rig), "");
}

/// Ranks of a replica group that have the factor of the columns of a matrix. Collective.
std::vector<std::int32_t> owners_of_column_factor(const Rig& rig, int parameter, std::int64_t expert) {
  std::int32_t own = -1;
  rig.optimizer.visit_state([&](const StateTensor& s) {
    if (s.parameter == parameter && s.expert == expert && std::string(s.kind) == "col")
      own = rig.communicators.world.rank();
  });
  std::vector<std::int32_t> ranks = rig.replicas(rig.spec(parameter).placement).all_gather(own);
  std::erase(ranks, -1);
  return ranks;
}

/// Flips one bit of a factor of the columns.
void flip_column_factor(const Rig& rig, int parameter, std::int64_t expert) {
  rig.optimizer.visit_state([&](const StateTensor& s) {
    if (s.parameter != parameter || s.expert != expert || std::string(s.kind) != "col") return;
    static_cast<char*>(s.tensor.data)[5] ^= 0x04;
  });
}

TEST(Replicas, FactorsThatOwnersOfBlocksShareAreComparedToo) {
  const Communicator world = Communicator::world();
  for (const int degree : test::degrees_of(world.size())) {
    Rig rig(world, degree, rig_deck("adafactor"));
    rig.optimizer.initialize(rig.context, 7);
    EXPECT_EQ(difference_in(rig), "");
    std::int32_t shared = 0;
    for (const char* name : {"logits", "encoder/layer_00/expert_up"}) {
      const int parameter = rig.store.find(name);
      for (std::int64_t e = 0; e < rig.store.local_experts(parameter); ++e) {
        const std::vector<std::int32_t> owners = owners_of_column_factor(rig, parameter, e);
        const bool several = owners.size() > 1;
        shared += several ? 1 : 0;
        // Some groups of the world may share a matrix at this place while others do not: the first that does is heard.
        const std::int32_t who = world.all_reduce(several ? owners.back() : world.size(), ReduceOp::min);
        const bool flips = world.rank() == who;
        if (flips) flip_column_factor(rig, parameter, e);
        const std::string text = difference_in(rig);  // on every rank, also those that own nothing of it
        if (who < world.size()) {
          EXPECT_NE(text.find(fmt::format("the copies of {}, ", name)), std::string::npos) << text;
          EXPECT_NE(text.find("factor col"), std::string::npos) << text;
          EXPECT_NE(text.find(fmt::format("on ranks [{}]", who)), std::string::npos) << text;
        } else {
          EXPECT_EQ(text, "");
        }
        if (flips) flip_column_factor(rig, parameter, e);
      }
    }
    EXPECT_EQ(difference_in(rig), "");
    if (world.size() > 1) {
      EXPECT_GT(world.all_reduce(shared, ReduceOp::max), 0) << "nothing is shared by owners";
    }
  }
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

/// Products read the packed copies of experts' weights.
TEST(Replicas, PackedCopiesAreComparedToo) {
  const Communicator world = Communicator::world();
  if (world.size() == 1) GTEST_SKIP() << "there is no other copy";
  const Deck deck = testing::tiny_deck(true);
  testing::TestModel test(deck, world, 1, "cpu", DType::f32, testing::limits_of(deck, 2), /*training=*/true,
                          kAllPasses);
  const Optimizer optimizer(deck.optimizer, test.store, test.communicators, test.kernels);
  const auto compare = [&] {
    return replica_difference(test.store, optimizer, test.communicators, test.kernels, test.context);
  };
  const int parameter = test.store.find("encoder/layer_01/feed_forward/expert_up");
  for (const bool transposed : {false, true}) {
    const Tensor& packed = test.store.packed(parameter, transposed);
    if (packed.absent()) GTEST_SKIP() << "experts have no packed copies on this processor";
    const auto flip_on_one = [&] {
      if (world.rank() == world.size() - 1) static_cast<char*>(packed.data)[5] ^= 0x04;
    };
    flip_on_one();
    EXPECT_EQ(compare(), "") << "what will be packed anew before it is used";
    flip_on_one();
    StepStatistics statistics;
    const PackedBatch whole = testing::random_batch(deck, 2 * world.size(), 3);
    test.model->forward_backward(test.context, testing::take_rows(whole, 2 * world.rank(), 2), statistics);
    flip_on_one();
    const std::string text = compare();
    EXPECT_NE(text.find("encoder/layer_01/feed_forward/expert_up, packed for products"), std::string::npos) << text;
    flip_on_one();
    EXPECT_EQ(compare(), "");
    for (const bool trained : {false, true}) test.store.weights_changed(trained);
    test.store.forget_gradients();
  }
}

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
