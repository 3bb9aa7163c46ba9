// A run with frozen parameters: the same training in any layout, exact restarts, and what is frozen keeps its bits.
#include <gtest/gtest.h>

#include <cmath>

#include "base/error.hpp"
#include "base/hdf5.hpp"
#include "regression/program.hpp"

namespace flanmoe::regression {
namespace {

class Freeze : public testing::Test {
 protected:
  static void SetUpTestSuite() {
    silence_hdf5();
    workplace_ = std::make_unique<Workplace>();
    shard_ = write_text(*workplace_);
    const Ended ended = run(2, smoke(shard_, dir("first"), {"--run.steps=4"}));
    ASSERT_EQ(ended.exit_code, 0) << ended.output;
  }
  static void TearDownTestSuite() { workplace_.reset(); }
  static std::string dir(const std::string& name) { return workplace_->path(name); }
  static Words command(const std::string& name, const Words& more = {}) {
    return with(smoke(shard_, dir(name),
                      {"--run.init_from=" + dir("first"), "--run.steps=6", "--checkpoint.every=3",
                       "--optimizer.freeze=moe attention", "--model.dropout=0.1"}),
                more);
  }
  /// Names of weights that differ between the newest checkpoints of two runs.
  static std::vector<std::string> changed(const std::string& a, const std::string& b) {
    return different_tensors(newest_of(dir(a)), newest_of(dir(b)), "weights/");
  }
  static std::unique_ptr<Workplace> workplace_;
  static std::string shard_;
};
std::unique_ptr<Workplace> Freeze::workplace_;
std::string Freeze::shard_;

bool is_frozen(const std::string& name) {
  return name.find("/expert_") != std::string::npos || name.ends_with("/router") || name.ends_with("relative_bias") ||
         (name.find("_attention/") != std::string::npos && !name.ends_with("/norm"));
}

TEST_F(Freeze, SameLossesInEveryLayoutAndWhatIsFrozenKeepsItsBits) {
  std::vector<nlohmann::json> expected;
  for (const auto& [ranks, expert] : {std::pair{1, 1}, {2, 1}, {2, 2}, {4, 2}, {4, 4}}) {
    const std::string name = fmt::format("{}_ranks_{}_expert", ranks, expert);
    SCOPED_TRACE(name);
    const Ended ended = run(ranks, command(name, {fmt::format("--parallel.expert={}", expert)}));
    ASSERT_EQ(ended.exit_code, 0) << ended.output;
    EXPECT_NE(ended.output.find("frozen by optimizer.freeze = moe attention: 32 of 49 tensors"), std::string::npos)
        << ended.output;

    const auto metrics = metrics_of(dir(name));
    ASSERT_EQ(metrics.size(), 6U);
    if (expected.empty()) expected = metrics;
    for (std::size_t i = 0; i < metrics.size(); ++i) {
      for (const char* key : {"loss", "grad_norm"}) {
        const double value = metrics[i][key], reference = expected[i][key];
        EXPECT_LE(std::abs(value - reference), 1e-5 * std::abs(reference)) << key << " of step " << i + 1;
      }
    }
    const auto names = changed("first", name);
    EXPECT_EQ(names.size(), 49U - 32U);
    for (const std::string& weight : names) EXPECT_FALSE(is_frozen(weight)) << weight;
  }
}

TEST_F(Freeze, KilledAndStartedAgainEndsWithTheSameBits) {
  ASSERT_EQ(run(2, command("whole", {"--parallel.expert=2"})).exit_code, 0);
  const Ended stopped = run(2, command("parts", {"--parallel.expert=2", "--run.stop_after_minutes=1e-6"}));
  ASSERT_EQ(stopped.exit_code, 75) << stopped.output;

  const Ended ended = run(2, command("parts", {"--parallel.expert=2"}));

  ASSERT_EQ(ended.exit_code, 0) << ended.output;
  EXPECT_EQ(difference_of_metrics(dir("whole"), dir("parts")), "");
  EXPECT_EQ(difference_of_checkpoints(newest_of(dir("whole")), newest_of(dir("parts"))), "");

  const Ended other = run(2, command("parts", {"--parallel.expert=2", "--optimizer.freeze=gate", "--run.steps=8"}));
  EXPECT_EQ(other.exit_code, 2);
  EXPECT_NE(other.output.find("optimizer.freeze: then moe attention, now gate"), std::string::npos) << other.output;

  // The weights alone start a run that freezes something else.
  const Ended next = run(2, command("next", {"--run.init_from=" + dir("parts"), "--optimizer.freeze=gate"}));
  EXPECT_EQ(next.exit_code, 0) << next.output;
}

TEST_F(Freeze, Bf16RunsKeepTheUnroundedWeights) {
  const Ended ended = run(2, command("bf16", {"--run.precision=bf16", "--parallel.expert=2"}));
  ASSERT_EQ(ended.exit_code, 0) << ended.output;
  for (const std::string& weight : changed("first", "bf16")) EXPECT_FALSE(is_frozen(weight)) << weight;
}

TEST_F(Freeze, NamesThatMatchNothingAreRefusedWithTheNearest) {
  const Ended ended = run(2, command("refused", {"--optimizer.freeze=experst"}));
  EXPECT_EQ(ended.exit_code, 2);
  EXPECT_NE(ended.output.find("'experst' matches none; nearest are set experts"), std::string::npos) << ended.output;
  EXPECT_FALSE(std::filesystem::exists(dir("refused")));
}

}  // namespace
}  // namespace flanmoe::regression
