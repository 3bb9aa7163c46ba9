// Sparse upcycling: an MoE model that starts as the dense model it was grown from.
#include <gtest/gtest.h>

#include <cmath>

#include "base/error.hpp"
#include "base/hdf5.hpp"
#include "regression/program.hpp"

namespace flanmoe::regression {
namespace {

class Upcycle : public testing::Test {
 protected:
  static void SetUpTestSuite() {
    silence_hdf5();
    workplace_ = std::make_unique<Workplace>();
    shard_ = write_pairs(*workplace_);
    const Ended ended = run(2, command("dense", {"--run.steps=40", "--moe.router=none"}));
    ASSERT_EQ(ended.exit_code, 0) << ended.output;
    const Ended next = run(1, command("dense_goes_on", {"--moe.router=none", "--run.init_from=" + dir("dense")}));
    ASSERT_EQ(next.exit_code, 0) << next.output;
  }
  static void TearDownTestSuite() { workplace_.reset(); }
  static std::string dir(const std::string& name) { return workplace_->path(name); }
  static Words command(const std::string& name, const Words& more = {}) {
    return with(smoke(shard_, dir(name),
                      {"--run.stage=finetune", "--run.steps=20", "--optimizer.name=adamw",
                       "--optimizer.schedule=constant", "--optimizer.learning_rate=0.003", "--optimizer.warmup_steps=1",
                       "--optimizer.split_above=256", "--checkpoint.every=0"}),
                more);
  }
  static Words sparse(const std::string& name, const Words& more = {}) {
    return with(command(name, {"--run.init_from=" + dir("dense"), "--run.upcycle=true", "--moe.capacity_factor=0"}),
                more);
  }
  static double loss(const std::string& name, std::size_t step) { return metrics_of(dir(name))[step]["loss"]; }
  static std::unique_ptr<Workplace> workplace_;
  static std::string shard_;
};
std::unique_ptr<Workplace> Upcycle::workplace_;
std::string Upcycle::shard_;

TEST_F(Upcycle, FirstLossIsTheDenseModelsAndFallsFromThere) {
  const double dense = loss("dense_goes_on", 0);
  for (const char* k : {"1", "2"}) {
    double first_on_one_rank = 0;
    for (const auto& [ranks, expert] : {std::pair{1, 1}, {2, 1}, {2, 2}}) {
      const std::string name = fmt::format("top_{}_{}_ranks_{}_expert", k, ranks, expert);
      SCOPED_TRACE(name);
      const Ended ended = run(ranks, sparse(name, {"--moe.renormalize=true", fmt::format("--moe.top_k={}", k),
                                                   fmt::format("--parallel.expert={}", expert)}));
      ASSERT_EQ(ended.exit_code, 0) << ended.output;
      EXPECT_NE(ended.output.find("weights upcycled from the dense"), std::string::npos) << ended.output;
      EXPECT_NEAR(loss(name, 0), dense, 1e-5 * dense);
      EXPECT_LT(loss(name, 19), 0.9 * dense);
      if (first_on_one_rank == 0) first_on_one_rank = loss(name, 19);
      EXPECT_NEAR(loss(name, 19), first_on_one_rank, 1e-4 * first_on_one_rank);
    }
  }
}

TEST_F(Upcycle, RawProbabilitiesChangeTheFunction) {
  const Ended ended = run(2, sparse("raw", {"--run.steps=1"}));
  ASSERT_EQ(ended.exit_code, 0) << ended.output;
  EXPECT_GT(std::abs(loss("raw", 0) - loss("dense_goes_on", 0)), 1e-3);
}

TEST_F(Upcycle, RoutersStartAsFromTheSeed) {
  const Words once = {"--run.steps=1", "--optimizer.freeze=gate"};
  ASSERT_EQ(run(2, sparse("grown", once)).exit_code, 0);
  ASSERT_EQ(run(2, command("seeded", once)).exit_code, 0);
  const std::string grown = newest_of(dir("grown")), seeded = newest_of(dir("seeded"));
  for (const char* stack : {"encoder", "decoder"}) {
    const std::string layer = fmt::format("weights/{}/layer_01/feed_forward/", stack);
    EXPECT_TRUE(different_tensors(grown, seeded, layer + "router").empty()) << layer;
    EXPECT_FALSE(different_tensors(grown, seeded, layer + "expert").empty()) << layer;
  }
}

TEST_F(Upcycle, GoesOnFromItsOwnCheckpointExactly) {
  const Words more = {"--moe.renormalize=true", "--parallel.expert=2", "--run.steps=6"};
  ASSERT_EQ(run(2, sparse("whole", more)).exit_code, 0);
  ASSERT_EQ(run(2, with(sparse("parts", more), {"--run.stop_after_minutes=1e-6"})).exit_code, 75);
  const Ended ended = run(2, sparse("parts", more));
  ASSERT_EQ(ended.exit_code, 0) << ended.output;
  EXPECT_EQ(difference_of_metrics(dir("whole"), dir("parts")), "");
  EXPECT_EQ(difference_of_checkpoints(newest_of(dir("whole")), newest_of(dir("parts"))), "");
}

TEST_F(Upcycle, WeightsThatDoNotFitAreAllListedAndNothingIsWritten) {
  const auto refused = [&](const Words& words, const std::vector<std::string>& parts) {
    const Ended ended = run(2, words);
    EXPECT_EQ(ended.exit_code, 2) << ended.output;
    for (const std::string& part : parts)
      EXPECT_NE(ended.output.find(part), std::string::npos) << part << "\nnot in:\n" << ended.output;
    EXPECT_FALSE(std::filesystem::exists(dir("refused")));
  };
  refused(sparse("refused", {"--model.hidden=96"}),
          {"8 problems", "weights/encoder/layer_01/feed_forward/up has shape [32, 64], this model needs [32, 96]",
           "weights/decoder/layer_00/feed_forward/down has shape [64, 32], this model needs [96, 32]"});
  // Dense feed-forwards in place of experts, and the other way round.
  refused(sparse("refused", {"--run.upcycle=false"}),
          {"10 problems", "weights/encoder/layer_01/feed_forward/router is missing",
           "weights/encoder/layer_01/feed_forward/up has no place in this model", "run.upcycle = true makes"});
  ASSERT_EQ(run(2, command("sparse", {"--run.steps=1"})).exit_code, 0);
  refused(sparse("refused", {"--run.init_from=" + dir("sparse")}),
          {"weights/decoder/layer_01/feed_forward/up is missing", "run.upcycle = true starts from a dense one"});
}

TEST_F(Upcycle, DecksThatMakeNoSenseAreRefused) {
  for (const auto& [override, text] : {std::pair{"--moe.router=none", "there are no experts to fill"},
                                       {"--run.init_from=", "an empty run.init_from"},
                                       {"--run.stage=evaluate", "the evaluate stage takes weights as they are"}}) {
    const Ended ended = run(1, sparse("refused", {override}));
    EXPECT_EQ(ended.exit_code, 2) << ended.output;
    EXPECT_NE(ended.output.find(text), std::string::npos) << ended.output;
  }
}

}  // namespace
}  // namespace flanmoe::regression
