// Same deck, any layout, same training: 1, 2, 3 and 4 ranks, any expert degree, one microbatch or several.
#include <gtest/gtest.h>

#include <cmath>

#include "base/error.hpp"
#include "regression/program.hpp"

namespace flanmoe::regression {
namespace {

struct Layout {
  int ranks, expert, microbatch_rows;
};

// fp32 sums in another order differ by a few units of 2^-24 per step; twenty steps of training amplify that a little.
constexpr double kRelative = 1e-5;

TEST(Layout, LossesAndNormsDoNotDependOnIt) {
  const Workplace workplace;
  const std::string shard = write_text(workplace);
  std::vector<nlohmann::json> expected;
  double expected_flops = 0;
  for (const Layout layout :
       {Layout{1, 1, 0}, {1, 1, 3}, {2, 1, 0}, {2, 2, 2}, {3, 1, 0}, {4, 1, 1}, {4, 2, 0}, {4, 4, 0}}) {
    const std::string name =
        fmt::format("{}_ranks_{}_expert_{}_rows", layout.ranks, layout.expert, layout.microbatch_rows);
    SCOPED_TRACE(name);
    const std::string dir = workplace.path(name);

    const Ended ended = run(layout.ranks, smoke(shard, dir,
                                                {fmt::format("--parallel.expert={}", layout.expert),
                                                 fmt::format("--batch.microbatch_rows={}", layout.microbatch_rows),
                                                 "--checkpoint.final=false", "--checkpoint.every=0"}));

    ASSERT_EQ(ended.exit_code, 0) << ended.output;
    const auto metrics = metrics_of(dir);
    ASSERT_EQ(metrics.size(), 20U);
    if (expected.empty()) expected = metrics;
    // Counted from whole tokens, pairs and copies: the same to the last digit, whoever computed them.
    const double flops = summary_of(dir)["flops_per_token"];
    if (expected_flops == 0) expected_flops = flops;
    EXPECT_EQ(flops, expected_flops);
    for (std::size_t i = 0; i < metrics.size(); ++i) {
      for (const char* key : {"loss", "grad_norm", "z_loss"}) {
        const double value = metrics[i][key], reference = expected[i][key];
        EXPECT_LE(std::abs(value - reference), kRelative * std::abs(reference))
            << key << " of step " << i + 1 << ": " << value << " against " << reference << " on one rank";
      }
      EXPECT_EQ(metrics[i]["tokens"], expected[i]["tokens"]);
      ASSERT_EQ(metrics[i]["moe"].size(), expected[i]["moe"].size());
      for (const auto& [layer, record] : expected[i]["moe"].items()) {
        EXPECT_EQ(metrics[i]["moe"][layer]["load"].size(), record["load"].size());
        EXPECT_NEAR(metrics[i]["moe"][layer]["balance_loss"].get<double>(), record["balance_loss"].get<double>(), 1e-4);
      }
    }
  }
  EXPECT_GT(expected.front()["moe"].size(), 0U) << "the smoke deck has no sparse layer";
}

/// The smoke deck with a sparse preset instead of its own one; small groups, so that slots are short.
Words sparse(const std::string& preset, const std::string& shard, const std::string& dir, const Words& more) {
  Words words = with({"--model.preset=" + preset, "--moe.every=2", "--moe.min_capacity=1", "--run.steps=6",
                      "--checkpoint.every=0", "--checkpoint.final=false"},
                     more);
  return smoke(shard, dir, words);
}

TEST(Layout, EveryPresetTrainsTheSameOnIt) {
  const Workplace workplace;
  const std::string shard = write_text(workplace);
  for (const std::string preset : {"switch", "gshard", "token_choice", "expert_choice", "st_moe"}) {
    std::vector<nlohmann::json> expected;
    for (const Layout layout : {Layout{1, 1, 0}, {2, 2, 3}, {4, 1, 0}, {4, 4, 0}}) {
      const std::string name = fmt::format("{}_{}_ranks_{}_expert", preset, layout.ranks, layout.expert);
      SCOPED_TRACE(name);
      const std::string dir = workplace.path(name);
      const Ended ended = run(layout.ranks, sparse(preset, shard, dir,
                                                   {fmt::format("--parallel.expert={}", layout.expert),
                                                    fmt::format("--batch.microbatch_rows={}", layout.microbatch_rows),
                                                    "--moe.expert_dropout=0.1"}));
      ASSERT_EQ(ended.exit_code, 0) << ended.output;
      const auto metrics = metrics_of(dir);
      ASSERT_EQ(metrics.size(), 6U);
      if (expected.empty()) expected = metrics;
      for (std::size_t i = 0; i < metrics.size(); ++i) {
        const double loss = metrics[i]["loss"], reference = expected[i]["loss"];
        EXPECT_LE(std::abs(loss - reference), kRelative * reference) << "step " << i + 1;
        for (const auto& [layer, record] : expected[i]["moe"].items()) {
          for (const char* key : {"copies_per_token", "drop_fraction", "unrouted_fraction"}) {
            EXPECT_NEAR(metrics[i]["moe"][layer][key].get<double>(), record[key].get<double>(), 0.02) << layer << key;
          }
        }
      }
    }
    EXPECT_EQ(expected.front()["moe"].size(), 2U);
  }
}

TEST(Layout, TheBiasOfTheRouterIsPartOfTheCheckpointAndTheSameOnAnyLayout) {
  const Workplace workplace;
  const std::string shard = write_text(workplace);
  const Words biased = {"--moe.bias_rate=0.01",    "--moe.shared_experts=1",           "--moe.extra_feed_forward=true",
                        "--moe.decoder=false",     "--model.multiplicative_bias=true", "--checkpoint.every=3",
                        "--checkpoint.final=true", "--moe.balance_coefficient=0"};
  const auto train = [&](const std::string& name, int ranks, int expert, int steps) {
    const Ended ended =
        run(ranks,
            sparse("token_choice", shard, workplace.path(name),
                   with(biased, {fmt::format("--parallel.expert={}", expert), fmt::format("--run.steps={}", steps)})));
    EXPECT_EQ(ended.exit_code, 0) << ended.output;
  };
  train("whole", 2, 2, 6);
  train("parts", 2, 2, 3);
  train("parts", 2, 2, 6);
  EXPECT_EQ(difference_of_checkpoints(newest_of(workplace.path("whole")), newest_of(workplace.path("parts"))), "");
  train("alone", 1, 1, 6);
  const auto alone = metrics_of(workplace.path("alone")), whole = metrics_of(workplace.path("whole"));
  for (std::size_t i = 0; i < 6; ++i) {
    EXPECT_NEAR(alone[i]["loss"].get<double>(), whole[i]["loss"].get<double>(), kRelative * 6);
  }
}

}  // namespace
}  // namespace flanmoe::regression
