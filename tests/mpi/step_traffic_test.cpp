// What a step hands to other ranks and what memory it takes are what the plan says, to the byte.
#include "train/plan/step_traffic.hpp"

#include <gtest/gtest.h>

#include "full_batch.hpp"
#include "model_fixture.hpp"
#include "train/plan/calibrate.hpp"
#include "train/plan/plan.hpp"
#include "train/trainer.hpp"

namespace flanmoe {
namespace {

/// 12 rows: they divide by 1, 2, 3 and 4 ranks.
Deck even(Deck deck) {
  deck.batch.rows = 12;
  deck.moe.forced_balance = deck.moe.router == "top_k";
  return deck;
}

struct Case {
  std::string name;
  Deck deck;
};

std::vector<Case> cases() {
  std::vector<Case> all = {{"dense", even(testing::tiny_deck(false))},
                           {"top-1", even(testing::tiny_deck(true))},
                           {"palm, top-1", even(testing::tiny_palm(true, "prefix"))}};
  Deck deck = even(testing::tiny_deck(true));
  deck.moe.top_k = 3;  // does not divide 4 experts: loads of rows differ
  deck.moe.experts = 12;
  deck.batch.microbatch_rows = 1;
  deck.batch.input_length = 11;
  all.push_back({"top-3, one row at a time, experts that do not divide a row", deck});
  for (const std::int64_t chunks : {2, 5}) {
    deck.moe.dispatch_chunks = chunks;
    all.push_back({fmt::format("the same in {} chunks", chunks), deck});
  }
  deck.moe.capacity_factor = 0.5;
  deck.run.precision = "bf16";
  deck.optimizer.name = "adamw";
  all.push_back({"the same in bf16, with drops, AdamW", deck});
  deck = even(testing::tiny_deck(true));
  deck.moe.router = deck.moe.decoder_router = "expert_choice";
  deck.moe.forced_balance = false;
  deck.moe.group_rows = 3;
  all.push_back({"experts choose", deck});
  deck = even(testing::tiny_deck(true));
  deck.moe.second_policy = "none";
  deck.moe.top_k = 2;
  all.push_back({"second choices never claim", deck});
  deck = even(testing::tiny_deck(true));
  deck.model.hidden = 48;
  deck.optimizer.split_above = 100;
  deck.optimizer.factor_threshold = 4;
  all.push_back({"matrices with several owners", deck});
  deck = even(testing::tiny_deck(true));
  deck.optimizer.freeze = "encoder/* embedding";
  all.push_back({"frozen encoder", deck});
  return all;
}

TEST(Calibration, MessagesBetweenNodesStayOutOfTheNode) {
  const Communicator world = Communicator::world();
  const auto host = [](int rank) { return std::uint64_t(rank / 2); };  // two ranks a node, the last may have one

  const Neighbours neighbours = neighbours_of(world, host(world.rank()));

  EXPECT_EQ(neighbours.most_per_node, std::min(2, world.size()));
  for (const std::int32_t rank : neighbours.node.all_gather(std::int32_t(world.rank()))) {
    EXPECT_EQ(host(rank), host(world.rank()));
  }
  for (const std::int32_t rank : neighbours.across.all_gather(std::int32_t(world.rank()))) {
    EXPECT_TRUE(rank == world.rank() || host(rank) != host(world.rank())) << rank << " is on this node";
  }
  const int nodes = (world.size() + 1) / 2, alone = world.size() % 2;  // the second place of the last node is free
  EXPECT_EQ(neighbours.across.size(), world.rank() % 2 == 0 ? nodes : nodes - alone);
}

class Plan : public ::testing::Test {
 protected:
  const Communicator world_ = Communicator::world();

  std::vector<int> degrees(const Deck& deck) const {
    std::vector<int> all;
    for (int degree = 1; degree <= world_.size(); ++degree) {
      if (world_.size() % degree == 0 && (deck.moe.experts % degree == 0 || deck.moe.router == "none")) {
        all.push_back(degree);
      }
    }
    return all;
  }
};

TEST_F(Plan, CallsMessagesAndBytesOfAStepAreExact) {
  for (const Case& test : cases()) {
    for (const int degree : degrees(test.deck)) {
      SCOPED_TRACE(fmt::format("{}, {} ranks, expert degree {}", test.name, world_.size(), degree));
      const ProcessGrid grid(world_.size(), world_.rank(), degree);
      const Communicators communicators = Communicators::make(world_, grid);
      Trainer trainer(test.deck, grid, communicators);
      trainer.commit_memory();
      trainer.start_from_seed();
      const RankRows rows = RankRows::of(test.deck, grid);
      std::vector<PackedBatch> batches;
      for (std::int64_t row = rows.first; row < rows.first + rows.rows; row += rows.microbatch) {
        batches.push_back(testing::full_batch(test.deck, row, rows.microbatch));
      }
      trainer.step(0, batches, false);
      Traffic measured = communicators.traffic();
      Traffic before = measured;
      const Trainer::StepOutcome outcome = trainer.step(1, batches, false);
      measured = communicators.traffic();
      measured -= before;

      const StepTraffic planned = plan_traffic(test.deck, grid, trainer.store());
      for (std::size_t i = 0; i < measured.kinds.size(); ++i) {
        const CollectiveCount p = planned.total().kinds[i], m = measured.kinds[i];
        EXPECT_EQ(p, m) << name_of(CollectiveKind(i)) << ": calls " << p.calls << " and " << m.calls << ", messages "
                        << p.messages << " and " << m.messages << ", bytes " << p.bytes << " and " << m.bytes;
      }
      EXPECT_EQ(measured.total().bytes > 0, world_.size() > 1);
      const WorkCounts work = full_work(test.deck, grid);
      EXPECT_EQ(outcome.work.encoder_tokens, work.encoder_tokens * world_.size());
      EXPECT_EQ(outcome.work.decoder_pairs, work.decoder_pairs * world_.size());
    }
  }
}

TEST_F(Plan, MemoryIsThatOfTheFullestRank) {
  for (const Case& test : cases()) {
    for (const int degree : degrees(test.deck)) {
      SCOPED_TRACE(fmt::format("{}, {} ranks, expert degree {}", test.name, world_.size(), degree));
      const ProcessGrid grid(world_.size(), world_.rank(), degree);
      const Communicators communicators = Communicators::make(world_, grid);
      const Trainer trainer(test.deck, grid, communicators);
      const auto most = world_.all_reduce(std::int64_t(trainer.arena_bytes()), ReduceOp::max);

      const LayoutPlan plan = plan_layout(test.deck, world_.size(), degree, nullptr);
      EXPECT_EQ(std::int64_t(plan.arena_bytes()), most);
      if (plan.rank != world_.rank()) continue;
      ASSERT_EQ(plan.arenas.size(), trainer.arenas().size());
      for (std::size_t a = 0; a < plan.arenas.size(); ++a) {
        EXPECT_EQ(plan.arenas[a].name, trainer.arenas()[a]->name());
        EXPECT_EQ(plan.arenas[a].bytes, trainer.arenas()[a]->measured());
      }
    }
  }
}

}  // namespace
}  // namespace flanmoe
