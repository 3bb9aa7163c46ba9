// What training is for: the loss falls, weights go from stage to stage, and memory is what was announced.
#include <gtest/gtest.h>

#include <cmath>

#include "base/hdf5.hpp"
#include "kernels/kernels.hpp"
#include "regression/program.hpp"

namespace flanmoe::regression {
namespace {

class Training : public testing::Test {
 protected:
  static void SetUpTestSuite() { silence_hdf5(); }
  Workplace workplace_;
};

TEST_F(Training, LossFallsFarOnATaskThatCanBeLearnt) {
  const std::string dir = workplace_.path("run");

  const Ended ended = run(2, smoke(write_pairs(workplace_), dir,
                                   {"--run.stage=finetune", "--run.steps=150", "--parallel.expert=2",
                                    "--checkpoint.every=0", "--optimizer.name=adamw", "--optimizer.schedule=linear",
                                    "--optimizer.learning_rate=0.01", "--optimizer.warmup_steps=10"}));

  ASSERT_EQ(ended.exit_code, 0) << ended.output;
  const auto summary = summary_of(dir);
  const auto metrics = metrics_of(dir);
  ASSERT_EQ(metrics.size(), 150U);
  // Fresh weights know nothing of 256 tokens; the targets are a function of the first input token.
  EXPECT_NEAR(summary["first_loss"].get<double>(), std::log(256.0), 1.5);
  EXPECT_LT(summary["mean_loss_last_tenth"].get<double>(), 0.5);
  EXPECT_GT(summary["mean_accuracy_last_tenth"].get<double>(), 0.8);
  EXPECT_EQ(summary["final_loss"], metrics.back()["loss"]);
  EXPECT_EQ(summary["tokens"], metrics.back()["tokens_seen"]);
  EXPECT_GT(summary["share_of_roof"].get<double>(), 0.0);
  EXPECT_LT(summary["share_of_roof"].get<double>(), 1.0);
  const auto& session = summary["last_session"];
  EXPECT_LE(session["data_wait"]["steps"], 150);
  EXPECT_EQ(session["data_wait"]["seconds"], session["part_seconds"]["data"]);
  EXPECT_NEAR(session["data_wait"]["share"].get<double>(),
              session["part_seconds"]["data"].get<double>() / session["seconds"].get<double>(), 1e-12);
}

TEST_F(Training, NextStageStartsFromTheWeightsOfTheLast) {
  const std::string shard = write_pairs(workplace_);
  const Words adamw = {"--optimizer.name=adamw", "--optimizer.schedule=constant", "--optimizer.learning_rate=0.01",
                       "--optimizer.warmup_steps=1"};
  const auto stage = [&](const std::string& name, const std::string& from, const Words& more) {
    Words words = smoke(shard, workplace_.path(name), adamw);
    if (!from.empty()) words.push_back("--run.init_from=" + from);
    words.insert(words.end(), more.begin(), more.end());
    const Ended ended = run(2, words);
    EXPECT_EQ(ended.exit_code, 0) << ended.output;
  };
  stage("first", "", {"--run.stage=instruct", "--run.steps=40"});
  const double reached = summary_of(workplace_.path("first"))["final_loss"];

  stage("second", workplace_.path("first"),
        {"--run.stage=finetune", "--run.steps=5", "--parallel.expert=2", "--data.tasks=odd"});
  stage("third", newest_of(workplace_.path("first")), {"--run.stage=finetune", "--run.steps=1"});

  const double fresh = summary_of(workplace_.path("first"))["first_loss"];
  EXPECT_LT(reached, 0.6 * fresh);
  for (const char* name : {"second", "third"}) {
    EXPECT_LT(summary_of(workplace_.path(name))["first_loss"].get<double>(), (reached + fresh) / 2) << name;
    EXPECT_EQ(metrics_of(workplace_.path(name)).front()["step"], 1);
  }
}

/// Six microbatches a step, so that weights change between uses of their packed copies.
TEST_F(Training, PackedWeightsOfExpertsChangeNoBit) {
  const std::string shard = write_pairs(workplace_);
  const auto train = [&](const std::string& name, bool packed) {
    const Ended ended =
        run(2, smoke(shard, workplace_.path(name),
                     {"--run.stage=finetune", "--run.steps=5", "--parallel.expert=2", "--batch.microbatch_rows=1",
                      "--moe.dispatch_chunks=2", fmt::format("--moe.packed_weights={}", packed)}));
    EXPECT_EQ(ended.exit_code, 0) << ended.output;
    return summary_of(workplace_.path(name))["memory"]["announced_mib_per_rank"][0].get<double>();
  };

  const double with = train("packed", true), without = train("plain", false);

  if (kernels_for("cpu").matmul.packed->size(DType::f32, 64, 64) > 0) {
    EXPECT_GT(with, without) << "no copies were kept";
  }
  const auto packed = metrics_of(workplace_.path("packed")), plain = metrics_of(workplace_.path("plain"));
  ASSERT_EQ(packed.size(), 5U);
  for (std::size_t step = 0; step < packed.size(); ++step) {
    for (const char* key : {"loss", "grad_norm"}) EXPECT_EQ(packed[step][key], plain[step][key]) << key << ", " << step;
  }
  EXPECT_NE(packed[0]["loss"], packed[4]["loss"]);
}

TEST_F(Training, PeakMemoryIsWithinTenPercentOfTheAnnouncement) {
  const std::string dir = workplace_.path("run");

  const Ended ended =
      run(2, smoke(write_text(workplace_), dir,
                   {"--run.steps=3", "--parallel.expert=2", "--model.vocabulary=8192", "--model.width=256",
                    "--model.hidden=1024", "--model.heads=4", "--model.head_width=64", "--batch.input_length=128",
                    "--batch.target_length=64", "--optimizer.name=adamw", "--optimizer.schedule=constant",
                    "--optimizer.learning_rate=1e-4", "--batch.rows=8", "--checkpoint.every=2"}));

  ASSERT_EQ(ended.exit_code, 0) << ended.output;
  EXPECT_NE(ended.output.find("memory: "), std::string::npos) << ended.output;
  const auto memory = summary_of(dir)["memory"];
  for (std::size_t rank = 0; rank < 2; ++rank) {
    const double announced = memory["announced_mib_per_rank"][rank], peak = memory["peak_resident_mib_per_rank"][rank];
    EXPECT_GT(announced, 150) << "too small to say anything";
    EXPECT_NEAR(peak, announced, 0.1 * announced) << "rank " << rank;
  }
}

}  // namespace
}  // namespace flanmoe::regression
