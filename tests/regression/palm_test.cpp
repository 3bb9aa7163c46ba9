// A decoder-only model through the program: training, layouts, restart, the next stage.
#include <gtest/gtest.h>

#include <cmath>

#include "base/error.hpp"
#include "base/hdf5.hpp"
#include "regression/program.hpp"

namespace flanmoe::regression {
namespace {

class Palm : public testing::Test {
 protected:
  static void SetUpTestSuite() { silence_hdf5(); }
  std::string dir(const std::string& name) const { return workplace_.path(name); }
  Workplace workplace_;
};

TEST_F(Palm, LossesDoNotDependOnTheLayout) {
  const std::string shard = write_text(workplace_);
  struct Layout {
    int ranks, expert, microbatch_rows;
  };
  for (const char* objective : {"prefix_lm", "causal_lm", "span_corruption"}) {
    std::vector<nlohmann::json> expected;
    double expected_flops = 0;
    for (const Layout layout : {Layout{1, 1, 3}, {2, 2, 0}, {3, 1, 0}, {4, 2, 1}}) {
      const std::string name = fmt::format("{}_{}_{}", objective, layout.ranks, layout.expert);
      SCOPED_TRACE(name);
      const Ended ended = run(
          layout.ranks,
          smoke_palm(shard, dir(name),
                     {fmt::format("--data.objective={}", objective), fmt::format("--parallel.expert={}", layout.expert),
                      fmt::format("--batch.microbatch_rows={}", layout.microbatch_rows), "--run.steps=10",
                      "--checkpoint.final=false", "--checkpoint.every=0"}));
      ASSERT_EQ(ended.exit_code, 0) << ended.output;
      const auto metrics = metrics_of(dir(name));
      ASSERT_EQ(metrics.size(), 10U);
      const double flops = summary_of(dir(name))["flops_per_token"];
      if (expected.empty()) {
        expected = metrics;
        expected_flops = flops;
      }
      EXPECT_EQ(flops, expected_flops);
      for (std::size_t i = 0; i < metrics.size(); ++i) {
        for (const char* key : {"loss", "grad_norm", "z_loss"}) {
          const double value = metrics[i][key], reference = expected[i][key];
          EXPECT_LE(std::abs(value - reference), 1e-5 * std::abs(reference)) << key << " of step " << i + 1;
        }
        EXPECT_EQ(metrics[i]["tokens"], expected[i]["tokens"]);
        EXPECT_EQ(metrics[i]["moe"].size(), 1U);
      }
    }
  }
}

TEST_F(Palm, StopAndGoOnIsExact) {
  const std::string shard = write_text(workplace_);
  const auto command = [&](const std::string& name, const Words& more) {
    return smoke_palm(shard, dir(name),
                      with({"--run.steps=8", "--checkpoint.every=3", "--parallel.expert=2", "--model.dropout=0.1",
                            "--batch.microbatch_rows=3", "--run.precision=bf16"},
                           more));
  };
  ASSERT_EQ(run(2, command("whole", {})).exit_code, 0);
  // The first run ends itself, with a checkpoint, as soon as its time is up: after its first step.
  const Ended stopped = run(2, command("parts", {"--run.stop_after_minutes=1e-9"}));
  ASSERT_EQ(stopped.exit_code, 75) << stopped.output;
  const Ended ended = run(2, command("parts", {}));
  ASSERT_EQ(ended.exit_code, 0) << ended.output;
  EXPECT_NE(ended.output.find("going on from"), std::string::npos) << ended.output;
  EXPECT_EQ(difference_of_metrics(dir("whole"), dir("parts")), "");
  EXPECT_EQ(difference_of_checkpoints(newest_of(dir("whole")), newest_of(dir("parts"))), "");
}

TEST_F(Palm, PretrainsThenLearnsATask) {
  const Words adamw = {"--optimizer.name=adamw",     "--optimizer.schedule=constant", "--optimizer.learning_rate=0.01",
                       "--optimizer.warmup_steps=1", "--model.attention=causal",      "--checkpoint.every=0"};
  const Ended first = run(2, smoke_palm(write_text(workplace_), dir("pretrain"),
                                        with(adamw, {"--data.objective=causal_lm", "--run.steps=40"})));
  ASSERT_EQ(first.exit_code, 0) << first.output;
  const auto pretrained = summary_of(dir("pretrain"));
  // Text that counts up can be predicted; a model that saw the next token would do so at once and from the first step.
  EXPECT_GT(pretrained["first_loss"].get<double>(), 4.0);
  EXPECT_LT(pretrained["final_loss"].get<double>(), 0.6 * pretrained["first_loss"].get<double>());

  const std::string pairs = write_pairs(workplace_);
  const Ended second = run(2, smoke_palm(pairs, dir("instruct"),
                                         with(adamw, {"--run.stage=instruct", "--run.steps=100", "--parallel.expert=2",
                                                      "--run.init_from=" + dir("pretrain")})));
  ASSERT_EQ(second.exit_code, 0) << second.output;
  const auto tuned = summary_of(dir("instruct"));
  // The targets are a function of the first input token.
  EXPECT_LT(tuned["mean_loss_last_tenth"].get<double>(), 0.6);
  EXPECT_GT(tuned["mean_accuracy_last_tenth"].get<double>(), 0.8);
}

TEST_F(Palm, PeakMemoryIsWithinTenPercentOfTheAnnouncement) {
  const Ended ended =
      run(2, smoke_palm(write_text(workplace_), dir("run"),
                        {"--run.steps=3", "--parallel.expert=2", "--model.vocabulary=8192", "--model.width=256",
                         "--model.hidden=1024", "--model.heads=4", "--model.head_width=64", "--batch.input_length=128",
                         "--batch.target_length=64", "--optimizer.name=adamw", "--optimizer.schedule=constant",
                         "--optimizer.learning_rate=1e-4", "--batch.rows=8", "--checkpoint.every=2"}));
  ASSERT_EQ(ended.exit_code, 0) << ended.output;
  const auto memory = summary_of(dir("run"))["memory"];
  for (std::size_t rank = 0; rank < 2; ++rank) {
    const double announced = memory["announced_mib_per_rank"][rank], peak = memory["peak_resident_mib_per_rank"][rank];
    EXPECT_GT(announced, 100) << "too small to say anything";
    EXPECT_NEAR(peak, announced, 0.1 * announced) << "rank " << rank;
  }
}

}  // namespace
}  // namespace flanmoe::regression
