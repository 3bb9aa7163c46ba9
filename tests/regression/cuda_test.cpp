// run.device = cuda trains, tunes, evaluates and goes on as run.device = cpu does. The program of this test is linked
// with the emulated GPU (tests/cuda_host), where a missing wait of the host or a host that touches device memory ends
// it.
#include <gtest/gtest.h>

#include <algorithm>
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
constexpr double kRouting = 0.01;  // a token between two experts goes the other way now and then

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
  /// `relative`: of losses and norms; `routing`: of what a step's routing is measured by.
  static void expect_same_training(const std::string& name, const std::string& expected, double relative,
                                   double routing) {
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
          EXPECT_NEAR(got[i]["moe"][layer][key].get<double>(), record[key].get<double>(), routing)
              << name << layer << key;
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
    for (const char* stage : {"_pretrain", "_instruct"})
      expect_same_training(cuda + stage, cpu + stage, kRelative, kRouting);
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

/// Rows of one chunk of experts travel beside the computing of another. The same bits, also of a run that goes on with
/// another number of chunks.
TEST_F(Cuda, ChunksOfExpertsGiveTheSameNumbers) {
  const Words layout = {"--parallel.expert=2", "--moe.top_k=2", "--moe.shared_experts=1", "--checkpoint.final=true"};
  const auto chunks = [&](int count) { return fmt::format("--moe.dispatch_chunks={}", count); };
  train(2, "cuda", "whole_dispatch", with(layout, {chunks(1)}));
  train(2, "cuda", "chunks", with(layout, {chunks(3), "--run.steps=1"}));
  train(2, "cuda", "chunks", with(layout, {chunks(2)}));
  expect_same_training("chunks", "whole_dispatch", 0.0, 0.0);
}

TEST_F(Cuda, RunsGoOnFromCheckpointsOfTheOtherDevice) {
  const Words kept = {"--checkpoint.final=true", "--checkpoint.background=true", "--optimizer.name=adamw"};
  train(1, "cpu", "whole", with(kept, {"--run.steps=6"}));
  train(1, "cpu", "parts", with(kept, {"--run.steps=2"}));
  train(2, "cuda", "parts", with(kept, {"--run.steps=4", "--parallel.expert=2"}));
  train(1, "cpu", "parts", with(kept, {"--run.steps=6"}));
  expect_same_training("parts", "whole", kRelative, kRouting);
}

/// With all that draws random numbers, and an evaluation that generates and ranks inside of the training.
TEST_F(Cuda, DecoderOnlyModelsTrainAndGenerate) {
  const Words keys = {"--optimizer.split_above=256", "--optimizer.factor_threshold=8",
                      "--run.stage=finetune",        "--run.steps=2",
                      "--model.dropout=0.1",         "--moe.jitter=0.05",
                      "--evaluate.every=2",          "--data.tokenizer=" + path("tokenizer.model"),
                      "--evaluate.batch_rows=2",     "--evaluate.shards=" + path("sums.h5"),
                      "--evaluate.beams=2",          "--evaluate.max_new_tokens=3"};
  const auto palm = [&](int ranks, const std::string& device, const std::string& name, const Words& more) {
    Words words = small(device, name, with(keys, more));
    words.front() = FLANMOE_PALM_DECK;
    // Most of the model is the embedding, so that both ranks own rows of it.
    std::replace(words.begin(), words.end(), std::string("--model.vocabulary=288"),
                 std::string("--model.vocabulary=1200"));
    const Ended ended = run(ranks, words);
    ASSERT_EQ(ended.exit_code, 0) << ended.output;
  };
  palm(1, "cpu", "palm_cpu", {});
  palm(2, "cuda", "palm_cuda", {"--parallel.expert=2"});
  expect_same_training("palm_cuda", "palm_cpu", kRelative, kRouting);
  const auto evaluation = [&](const std::string& name) {
    std::ifstream file(path(name) + "/evaluations/step-00000002.json");
    return nlohmann::json::parse(file);
  };
  const auto got = evaluation("palm_cuda"), want = evaluation("palm_cpu");
  ASSERT_GT(want["tasks"].size(), 0U);
  for (std::size_t i = 0; i < want["tasks"].size(); ++i) {
    const double nll = want["tasks"][i]["nll_per_token"];
    EXPECT_NEAR(got["tasks"][i]["nll_per_token"].get<double>(), nll, kRelative * nll);
  }
}

TEST_F(Cuda, Bf16Trains) {
  const Words keys = {
      "--run.precision=bf16",          "--run.steps=6",           "--moe.top_k=2", "--moe.bias_rate=0.01",
      "--optimizer.freeze=embeddings", "--faults.compare_every=4"};
  train(1, "cpu", "bf16_cpu", keys);
  train(2, "cuda", "bf16_cuda", keys);
  expect_same_training("bf16_cuda", "bf16_cpu", 5e-2, 0.2);
  const auto metrics = metrics_of(path("bf16_cuda"));
  EXPECT_LT(metrics.back()["loss"].get<double>(), metrics.front()["loss"].get<double>() - 0.5);
}

TEST_F(Cuda, RanksWithoutAGpuOfTheirOwnAreRefusedBeforeAnythingIsWritten) {
  for (const auto& [ranks, gpus, expected] :
       {std::tuple{1, 0, "run.device = cuda: there is no GPU here: no CUDA-capable device is detected"},
        {2, 1, "run.device = cuda: 2 ranks on host"}}) {
    const Ended ended = run(ranks, small("cuda", "refused", {}), {fmt::format("FLANMOE_EMULATION_DEVICES={}", gpus)});
    EXPECT_EQ(ended.exit_code, 2) << ended.output;
    const auto at = ended.output.find(expected);
    ASSERT_NE(at, std::string::npos) << ended.output;
    EXPECT_EQ(ended.output.find("run.device = cuda", at + 1), std::string::npos) << "said twice\n" << ended.output;
    EXPECT_FALSE(fs::exists(path("refused")));
  }
  const Ended cpu = run(1, small("cpu", "no_gpu", {"--run.steps=1"}), {"FLANMOE_EMULATION_DEVICES=0"});
  EXPECT_EQ(cpu.exit_code, 0) << cpu.output;
}

TEST_F(Cuda, Tf32AndRandomRoundingReachTheGpu) {
  const auto losses = [&](const std::string& name, const std::string& device, const Words& more) {
    train(1, device, name, more);
    std::vector<double> all;
    for (const auto& record : metrics_of(path(name))) all.push_back(record["loss"]);
    return all;
  };
  const auto difference = [](const std::vector<double>& a, const std::vector<double>& b) {
    double largest = a.size() == b.size() && !a.empty() ? 0 : 1;
    for (std::size_t i = 0; i < std::min(a.size(), b.size()); ++i) {
      largest = std::max(largest, std::abs(a[i] - b[i]) / b[i]);
    }
    return largest;
  };
  const auto fp32 = losses("of_fp32", "cuda", {}), tf32 = losses("of_tf32", "cuda", {"--run.precision=tf32"});
  EXPECT_GT(difference(tf32, fp32), 0);
  EXPECT_LT(difference(tf32, fp32), 1e-2);

  const Words bf16{"--run.precision=bf16"}, rounded = with(bf16, {"--optimizer.stochastic_rounding=true"});
  const auto cuda_nearest = losses("of_nearest", "cuda", bf16), cuda_random = losses("of_random", "cuda", rounded),
             cpu_random = losses("of_random_cpu", "cpu", rounded);
  EXPECT_GT(difference(cuda_random, cuda_nearest), 0);
  EXPECT_LT(difference(cuda_random, cpu_random), 2e-2);
  EXPECT_NE(run(1, small("cpu", "refused", {"--run.precision=tf32"})).exit_code, 0);
}

}  // namespace
}  // namespace flanmoe::regression
