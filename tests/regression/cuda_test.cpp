// run.device = cuda trains, tunes, evaluates and goes on as run.device = cpu does. The program of this test is linked
// with the emulated GPU (tests/cuda_host), where a missing wait of the host or a host that touches device memory ends
// it.
#include <gtest/gtest.h>

#include <array>
#include <cmath>
#include <fstream>

#include "base/error.hpp"
#include "base/hdf5.hpp"
#include "data/shard.hpp"
#include "data/tokenizer.hpp"
#include "regression/program.hpp"

namespace flanmoe::regression {
namespace {

namespace fs = std::filesystem;

// Sums in another order differ by a few units of 2^-24 a step, and training amplifies that.
constexpr double kRelative = 1e-4;

class Cuda : public testing::Test {
 protected:
  static void SetUpTestSuite() {
    silence_hdf5();
    workplace_ = std::make_unique<Workplace>();
    write_data();
  }
  static void TearDownTestSuite() { workplace_.reset(); }
  static std::string path(const std::string& name) { return workplace_->path(name); }

  /// Sums as text: pieces of it to pretrain on, and questions to tune on and to test.
  static void write_data() {
    constexpr std::array things = {"stone", "river", "window", "table", "garden", "letter", "winter", "mountain"};
    std::size_t at = 0;
    const auto next = [&](std::string& sentence) {
      sentence = fmt::format("what is the {} that moves plus {} and {}", things[at % 8], at * 37 % 1000, at % 91);
      return at++ < 2000;
    };
    train_tokenizer(next, {.vocabulary = 264}, path("tokenizer.model"));
    const Tokenizer tokenizer(path("tokenizer.model"));
    ShardWriter text(path("text.h5"), tokenizer.identity()), sums(path("sums.h5"), tokenizer.identity());
    for (int i = 0; i < 40; ++i) {
      Example piece;
      piece.task = "text";
      piece.split = "train";
      piece.variant = "text";
      piece.has_target = false;
      piece.input = tokenizer.encode(fmt::format("the {} moves and what is {} plus {}", things[i % 8], i, i * 7));
      text.add(piece);
      Example sum;
      sum.task = i % 3 == 0 ? "plus" : "sum";
      sum.variant = "zero_shot";
      sum.split = i < 32 ? "train" : "test";
      sum.input = tokenizer.encode(fmt::format("what is {} plus {}", i, i % 7));
      sum.target = tokenizer.encode(std::to_string(i + i % 7));
      for (int c = 0; c < 3 && i % 2 == 0; ++c) {
        sum.choices.push_back(tokenizer.encode(std::to_string(i + i % 7 + c)));
        sum.choice_bytes.push_back(2);
        sum.gold = 0;
      }
      sums.add(sum);
    }
    text.finish();
    sums.finish();
  }

  /// The smoke deck, small enough for a GPU that is emulated.
  static Words small(const std::string& device, const std::string& name, const Words& more) {
    return smoke(
        path("sums.h5"), path(name),
        with({"--run.device=" + device, "--run.steps=3", "--model.vocabulary=288", "--batch.rows=4",
              "--batch.input_length=16", "--batch.target_length=8", "--checkpoint.every=0", "--checkpoint.final=false"},
             more));
  }
  static void train(int ranks, const std::string& device, const std::string& name, const Words& more) {
    const Ended ended = run(ranks, small(device, name, more));
    ASSERT_EQ(ended.exit_code, 0) << name << "\n" << ended.output;
  }
  static void expect_same_training(const std::string& name, const std::string& expected, double relative) {
    const auto got = metrics_of(path(name)), want = metrics_of(path(expected));
    ASSERT_EQ(got.size(), want.size()) << name;
    ASSERT_GT(want.size(), 0U);
    for (std::size_t i = 0; i < want.size(); ++i) {
      for (const char* key : {"loss", "grad_norm", "z_loss"}) {
        const double value = got[i][key], reference = want[i][key];
        EXPECT_LE(std::abs(value - reference), relative * std::abs(reference))
            << name << ": " << key << " of step " << i + 1 << ": " << value << " against " << reference;
      }
      for (const auto& [layer, record] : want[i]["moe"].items()) {
        for (const char* key : {"balance_loss", "z_loss", "router_entropy", "drop_fraction"}) {
          EXPECT_NEAR(got[i]["moe"][layer][key].get<double>(), record[key].get<double>(), 0.02) << name << layer << key;
        }
      }
    }
  }
  static inline std::unique_ptr<Workplace> workplace_;
};

TEST_F(Cuda, ChainGivesTheLossesOfTheCpu) {
  const auto chain = [&](int ranks, int expert, const std::string& device) {
    const std::string name = fmt::format("{}_{}_{}", device, ranks, expert);
    const Words layout = {fmt::format("--parallel.expert={}", expert)};
    train(ranks, device, name + "_pretrain",
          with(layout, {"--data.train=" + path("text.h5"), "--checkpoint.final=true"}));
    train(ranks, device, name + "_instruct",
          with(layout,
               {"--run.stage=instruct", "--run.init_from=" + path(name + "_pretrain"), "--checkpoint.final=true"}));
    train(ranks, device, name + "_evaluate",
          with(layout, {"--run.stage=evaluate", "--run.init_from=" + path(name + "_instruct"),
                        "--data.tokenizer=" + path("tokenizer.model"), "--evaluate.shards=" + path("sums.h5"),
                        "--evaluate.max_new_tokens=4", "--evaluate.batch_rows=2"}));
    return name;
  };
  const std::string cpu = chain(1, 1, "cpu");
  std::ifstream expected_file(path(cpu + "_evaluate/evaluation.json"));
  const auto expected = nlohmann::json::parse(expected_file);
  for (const auto& [ranks, expert] : {std::pair{1, 1}, {2, 2}, {4, 2}}) {
    const std::string cuda = chain(ranks, expert, "cuda");
    if (HasFatalFailure()) return;
    for (const char* stage : {"_pretrain", "_instruct"}) expect_same_training(cuda + stage, cpu + stage, kRelative);
    EXPECT_EQ(summary_of(path(cuda + "_pretrain"))["device"], "cuda");
    EXPECT_GT(summary_of(path(cuda + "_pretrain"))["memory"]["gpu_mib_per_rank"][0], 0);
    std::ifstream file(path(cuda + "_evaluate/evaluation.json"));
    const auto got = nlohmann::json::parse(file);
    ASSERT_EQ(got["tasks"].size(), expected["tasks"].size());
    for (std::size_t i = 0; i < got["tasks"].size(); ++i) {
      const double want = expected["tasks"][i]["nll_per_token"];
      EXPECT_NEAR(got["tasks"][i]["nll_per_token"].get<double>(), want, kRelative * want);
      EXPECT_EQ(got["tasks"][i]["acc"], expected["tasks"][i]["acc"]);
    }
  }
}

}  // namespace
}  // namespace flanmoe::regression
