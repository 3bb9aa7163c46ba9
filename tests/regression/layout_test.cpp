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

}  // namespace
}  // namespace flanmoe::regression
