// With reduction.leaves a run has the same bits on any layout whose ranks divide the leaves.
#include <gtest/gtest.h>

#include "base/error.hpp"
#include "regression/program.hpp"

namespace flanmoe::regression {
namespace {

struct Layout {
  int ranks, expert;
  int microbatch_rows = 0;  // 0: all rows of the rank
};

/// Runs the deck on every layout and compares metrics, weights and optimizer state with those of the first.
void expect_same_bits(const std::vector<Layout>& layouts, const Words& more, bool palm = false) {
  const Workplace workplace;
  const std::string shard = write_text(workplace);
  std::string first;
  for (const Layout layout : layouts) {
    const std::string name =
        fmt::format("{}_ranks_{}_expert_{}_rows", layout.ranks, layout.expert, layout.microbatch_rows);
    SCOPED_TRACE(name);
    const std::string dir = workplace.path(name);
    const Words words =
        with({fmt::format("--parallel.expert={}", layout.expert),
              fmt::format("--batch.microbatch_rows={}", layout.microbatch_rows), "--checkpoint.every=0"},
             more);
    const Ended ended = run(layout.ranks, palm ? smoke_palm(shard, dir, words) : smoke(shard, dir, words));
    ASSERT_EQ(ended.exit_code, 0) << ended.output;
    EXPECT_NE(ended.output.find("the same bits"), std::string::npos) << ended.output;
    if (first.empty()) first = dir;
    EXPECT_EQ(difference_of_metrics(first, dir), "");
    EXPECT_EQ(difference_of_checkpoints(newest_of(first), newest_of(dir)), "");
  }
}

// A rank computes from one to all of eight leaves of two rows together, in up to eight microbatches.
TEST(SameBits, SwitchWithDropsAndDropoutInEightLeaves) {
  expect_same_bits({{1, 1}, {1, 1, 2}, {1, 1, 8}, {2, 1, 4}, {2, 2}, {2, 2, 4}, {4, 1, 2}, {4, 2}, {4, 4}, {8, 2}},
                   {"--batch.rows=16", "--run.steps=20", "--optimizer.name=adafactor", "--moe.capacity_factor=0.75",
                    "--moe.min_capacity=1", "--moe.expert_dropout=0.2", "--model.dropout=0.1"});
}

TEST(SameBits, DroplessGshardInBf16WithAdamw) {
  expect_same_bits(
      {{1, 1}, {1, 1, 6}, {2, 2}, {2, 2, 3}, {4, 1}, {4, 2}, {4, 4}},
      {"--reduction.leaves=4", "--run.steps=20", "--run.precision=bf16", "--optimizer.name=adamw",
       "--optimizer.learning_rate=0.01", "--model.preset=gshard", "--moe.capacity_factor=0", "--model.dropout=0.1"});
}

TEST(SameBits, EveryKindOfParameterOfASparseLayer) {
  expect_same_bits(
      {{1, 1}, {1, 1, 3}, {2, 2, 3}, {2, 2}, {4, 2}},
      {"--reduction.leaves=4", "--run.steps=6", "--moe.every=2", "--model.preset=token_choice", "--moe.bias_rate=0.01",
       "--moe.shared_experts=1", "--moe.extra_feed_forward=true", "--model.multiplicative_bias=true",
       "--moe.min_capacity=1", "--moe.expert_dropout=0.1", "--moe.decoder=false", "--moe.balance_coefficient=0"});
}

/// Sums over the leaves of all ranks wait in scratch memory, which no other operation of this device makes large.
TEST(SameBits, TheReferenceHasRoomForTheLeavesOfAllRanks) {
  const Workplace workplace;
  const Ended ended = run(4, smoke(write_text(workplace), workplace.path("run"),
                                   {"--run.device=reference", "--run.steps=1", "--parallel.expert=4", "--batch.rows=4",
                                    "--batch.input_length=16", "--batch.target_length=8", "--model.hidden=2048",
                                    "--model.multiplicative_bias=true"}));
  EXPECT_EQ(ended.exit_code, 0) << ended.output;
}

TEST(SameBits, ExpertsThatChooseAndTokensThatComeByProbability) {
  expect_same_bits({{1, 1}, {2, 2, 3}, {4, 4}},
                   {"--reduction.leaves=4", "--run.steps=6", "--model.preset=expert_choice", "--moe.decoder=true",
                    "--moe.every=2", "--moe.decoder_priority=probability", "--moe.capacity_factor=0.75"});
}

TEST(SameBits, DecoderOnly) {
  expect_same_bits({{1, 1}, {1, 1, 3}, {2, 1}, {4, 1}},
                   {"--reduction.leaves=4", "--run.steps=6", "--model.dropout=0.1"}, true);
}

/// Nearly every matrix is cut into blocks of rows, and the embedding, most of the model, has owners on all ranks.
const Words kSplit = {"--optimizer.split_above=256", "--optimizer.factor_threshold=8", "--model.vocabulary=2048"};

TEST(SameBits, MatricesWithSeveralOwners) {
  expect_same_bits({{1, 1}, {2, 1}, {2, 2}, {4, 1}, {4, 2}},
                   with(kSplit, {"--reduction.leaves=4", "--optimizer.name=adafactor", "--optimizer.clip_norm=0.5"}));
  expect_same_bits({{1, 1}, {4, 1}},
                   with(kSplit, {"--reduction.leaves=4", "--optimizer.name=adamw", "--optimizer.freeze=norms",
                                 "--run.precision=bf16", "--optimizer.stochastic_rounding=true"}));
}

void expect_that_a_run_may_go_on(const Words& more) {
  const Workplace workplace;
  const std::string shard = write_text(workplace);
  const auto train = [&](const std::string& name, int ranks, int expert, int steps) {
    const Words words = {"--reduction.leaves=4", fmt::format("--parallel.expert={}", expert),
                         fmt::format("--run.steps={}", steps), "--checkpoint.every=2", "--model.dropout=0.1"};
    const Ended ended = run(ranks, smoke(shard, workplace.path(name), with(words, more)));
    EXPECT_EQ(ended.exit_code, 0) << ended.output;
  };
  train("whole", 2, 2, 6);
  train("parts", 4, 4, 2);
  train("parts", 1, 1, 4);
  train("parts", 4, 2, 6);
  EXPECT_EQ(difference_of_metrics(workplace.path("whole"), workplace.path("parts")), "");
  EXPECT_EQ(difference_of_checkpoints(newest_of(workplace.path("whole")), newest_of(workplace.path("parts"))), "");
}

TEST(SameBits, ARunMayGoOnWithAnotherLayout) { expect_that_a_run_may_go_on({}); }

TEST(SameBits, ARunWithWeightsRoundedAtRandomMayGoOnWithAnotherLayout) {
  expect_that_a_run_may_go_on({"--run.precision=bf16", "--optimizer.stochastic_rounding=true"});
}

TEST(SameBits, ARunMayGoOnWithOtherOwnersOfRows) {
  expect_that_a_run_may_go_on(with(kSplit, {"--optimizer.name=adafactor"}));
}

TEST(SameBits, ABatchThatMakesNoLeavesSaysSo) {
  const Workplace workplace;
  const Ended ended = run(1, smoke(write_text(workplace), workplace.path("run"), {"--batch.rows=9", "--run.steps=1"}));
  EXPECT_EQ(ended.exit_code, 0) << ended.output;
  EXPECT_NE(ended.output.find("batch.rows = 9, batch.microbatch_rows = 0, moe.group_rows = 1 make no leaves"),
            std::string::npos)
      << ended.output;
}

TEST(SameBits, RanksThatDoNotDivideTheLeavesSaySo) {
  const Workplace workplace;
  const Ended ended =
      run(3, smoke(write_text(workplace), workplace.path("run"), {"--reduction.leaves=4", "--run.steps=1"}));
  EXPECT_EQ(ended.exit_code, 0) << ended.output;
  EXPECT_NE(ended.output.find("3 ranks do not divide the 4 leaves of the batch"), std::string::npos) << ended.output;
}

}  // namespace
}  // namespace flanmoe::regression
