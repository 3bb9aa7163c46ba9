// Evaluations that are killed and go on, and evaluations inside a training, measure what one left alone measures.
#include <gtest/gtest.h>
#include <signal.h>

#include <array>
#include <chrono>
#include <fstream>
#include <sstream>
#include <thread>

#include "base/error.hpp"
#include "base/hdf5.hpp"
#include "data/tokenizer.hpp"
#include "kernels/kernels.hpp"
#include "regression/program.hpp"

namespace flanmoe::regression {
namespace {

namespace fs = std::filesystem;

std::string text_of(const std::string& path) {
  std::ostringstream text;
  text << std::ifstream(path, std::ios::binary).rdbuf();
  return text.str();
}

/// What an evaluation says that its weights take.
double weights_mib(const Ended& ended) {
  const std::string before = "memory: weights ";
  const std::size_t at = ended.output.find(before);
  return at == std::string::npos ? 0.0 : std::stod(ended.output.substr(at + before.size()));
}

class Evaluation : public testing::Test {
 protected:
  static void SetUpTestSuite() {
    silence_hdf5();
    workplace_ = std::make_unique<Workplace>();
    write_data();
    const Ended ended = run(2, training("trained", {"--evaluate.every=0"}));
    ASSERT_EQ(ended.exit_code, 0) << ended.output;
  }
  static void TearDownTestSuite() { workplace_.reset(); }
  static std::string path(const std::string& name) { return workplace_->path(name); }

  /// Sums as text, 24 to train on and 40 to test; every other one with choices.
  static void write_data() {
    constexpr std::array starts = {"red", "green", "loud", "soft", "quick", "bright", "dull", "heavy", "light", "warm"};
    constexpr std::array things = {"stone", "river", "window", "table", "garden", "letter", "winter", "mountain"};
    constexpr std::array verbs = {"moves", "stands", "falls", "rises", "was sold", "turns", "is old"};
    std::size_t at = 0;
    const auto next = [&](std::string& sentence) {
      sentence = fmt::format("what is the {}er {} that {} plus {} and {}", starts[at % 10], things[at % 8],
                             verbs[at % 7], at * 37 % 1000, at % 91);
      return at++ < 3000;
    };
    train_tokenizer(next, {.vocabulary = 290}, path("tokenizer.model"));
    const Tokenizer tokenizer(path("tokenizer.model"));
    ShardWriter writer(path("sums.h5"), tokenizer.identity());
    for (int i = 0; i < 64; ++i) {
      Example e;
      e.task = i % 3 == 0 ? "plus" : "sum";
      e.variant = "zero_shot";
      e.split = i < 24 ? "train" : "test";
      e.input = tokenizer.encode(fmt::format("what is {} plus {}", i, i % 7));
      e.target = tokenizer.encode(std::to_string(i + i % 7));
      for (int c = 0; c < 3 && i % 2 == 0; ++c) {
        e.choices.push_back(tokenizer.encode(std::to_string(i + i % 7 + c)));
        e.choice_bytes.push_back(2);
        e.gold = 0;
      }
      writer.add(e);
    }
    writer.finish();
  }
  static Words evaluation_keys() {
    return {"--data.tokenizer=" + path("tokenizer.model"), "--evaluate.shards=" + path("sums.h5"),
            "--evaluate.max_new_tokens=24", "--evaluate.batch_rows=1"};
  }
  static Words training(const std::string& name, const Words& more = {}) {
    Words words = smoke(path("sums.h5"), path(name),
                        {"--run.stage=finetune", "--run.steps=4", "--model.vocabulary=320", "--checkpoint.every=2",
                         "--checkpoint.keep=9", "--batch.input_length=32", "--batch.target_length=16",
                         "--model.dropout=0.1", "--evaluate.every=2", "--parallel.expert=2"});
    return with(with(words, evaluation_keys()), more);
  }
  static Words measuring(const std::string& name, const Words& more = {}) {
    Words words = smoke(path("sums.h5"), path(name),
                        {"--run.stage=evaluate", "--model.vocabulary=320", "--batch.input_length=32",
                         "--batch.target_length=16", "--run.init_from=" + path("trained"), "--parallel.expert=1"});
    return with(with(words, evaluation_keys()), more);
  }
  static inline std::unique_ptr<Workplace> workplace_;
};

TEST_F(Evaluation, KilledOneGoesOnWhereItWas) {
  const Ended ended = run(2, measuring("undisturbed"));
  ASSERT_EQ(ended.exit_code, 0) << ended.output;
  const std::string expected = text_of(path("undisturbed") + "/predictions.jsonl");
  ASSERT_EQ(count_lines(path("undisturbed") + "/predictions.jsonl"), 40);
  EXPECT_FALSE(fs::exists(path("undisturbed") + "/predictions.unfinished"));

  std::string killed, unfinished;
  // An evaluation that was over before the kill came shows nothing: another one is killed then.
  bool over = true;
  for (int attempt = 1; over && attempt <= 5; ++attempt) {
    killed = fmt::format("killed_{}", attempt);
    unfinished = path(killed) + "/predictions.unfinished";
    Program program(2, measuring(killed));
    while (program.running() && (!fs::exists(unfinished) || count_lines(unfinished) < 6)) {
      std::this_thread::sleep_for(std::chrono::microseconds(200));
    }
    program.kill_all();
    over = !fs::exists(unfinished) || fs::exists(path(killed) + "/evaluation.json");
  }
  ASSERT_FALSE(over) << "five evaluations were over before they were killed";
  const std::int64_t measured = count_lines(unfinished) - 1;
  EXPECT_GE(measured, 5);
  // As if the kill had come in the middle of a line.
  std::ofstream(unfinished, std::ios::app) << "[39,\"sum\",\"";
  const Ended rest = run(3, measuring(killed));
  ASSERT_EQ(rest.exit_code, 0) << rest.output;
  EXPECT_NE(rest.output.find(fmt::format("{} others were measured before", measured)), std::string::npos)
      << rest.output;
  EXPECT_EQ(text_of(path(killed) + "/predictions.jsonl"), expected);
  EXPECT_FALSE(fs::exists(unfinished));
  auto a = nlohmann::json::parse(text_of(path("undisturbed") + "/evaluation.json"));
  auto b = nlohmann::json::parse(text_of(path(killed) + "/evaluation.json"));
  EXPECT_EQ(a.at("tasks"), b.at("tasks"));
  EXPECT_EQ(a.at("averages"), b.at("averages"));
}

TEST_F(Evaluation, AskedToStopItEndsWithItsRoundAndGoesOn) {
  const Ended whole = run(2, measuring("whole"));
  ASSERT_EQ(whole.exit_code, 0) << whole.output;
  const Ended plain = run(2, measuring("plain", {"--moe.packed_weights=false"}));
  ASSERT_EQ(plain.exit_code, 0) << plain.output;
  EXPECT_EQ(text_of(path("plain") + "/predictions.jsonl"), text_of(path("whole") + "/predictions.jsonl"));
  if (kernels_for("cpu").matmul.packed->size(DType::f32, 64, 64) > 0) {
    EXPECT_GT(weights_mib(whole), weights_mib(plain)) << "no copies were kept";
  }

  const Ended part = run(2, measuring("part", {"--run.stop_after_minutes=1e-6"}));

  EXPECT_EQ(part.exit_code, 75) << part.output;
  EXPECT_FALSE(fs::exists(path("part") + "/evaluation.json"));
  EXPECT_EQ(count_lines(path("part") + "/predictions.unfinished"), 1 + 2);  // one round of one example a rank
  const Ended rest = run(2, measuring("part"));
  EXPECT_EQ(rest.exit_code, 0) << rest.output;
  EXPECT_NE(rest.output.find("2 others were measured before"), std::string::npos) << rest.output;
  EXPECT_EQ(text_of(path("part") + "/predictions.jsonl"), text_of(path("whole") + "/predictions.jsonl"));
}

TEST_F(Evaluation, WhatAnotherDeckLeftIsNotGoneOnWith) {
  fs::create_directories(path("other"));
  std::ofstream(path("other") + "/predictions.unfinished") << "{\"fingerprint\":\"0123\"}\n[\"nonsense\"]\n";
  const Ended ended = run(1, measuring("other", {"--evaluate.limit=2"}));
  ASSERT_EQ(ended.exit_code, 0) << ended.output;
  EXPECT_EQ(ended.output.find("measured before"), std::string::npos);
  EXPECT_EQ(count_lines(path("other") + "/predictions.jsonl"), 4);
}

TEST_F(Evaluation, InsideATrainingChangesNoBitOfItAndMeasuresTheSame) {
  const Ended ended = run(2, training("measured"));
  ASSERT_EQ(ended.exit_code, 0) << ended.output;
  EXPECT_EQ(difference_of_metrics(path("trained"), path("measured")), "");
  EXPECT_EQ(difference_of_checkpoints(newest_of(path("trained")), newest_of(path("measured"))), "");
  EXPECT_FALSE(fs::exists(path("trained") + "/evaluations"));
  for (const int step : {2, 4}) {
    const std::string inside = fmt::format("{}/evaluations/step-{:08}", path("measured"), step);
    const std::string apart = fmt::format("apart_{}", step);
    const Ended alone =
        run(1, measuring(apart, {fmt::format("--run.init_from={}/checkpoints/step-{:08}", path("measured"), step)}));
    ASSERT_EQ(alone.exit_code, 0) << alone.output;
    EXPECT_EQ(text_of(inside + ".predictions.jsonl"), text_of(path(apart) + "/predictions.jsonl")) << step;
    EXPECT_EQ(nlohmann::json::parse(text_of(inside + ".json")).at("step"), step);
    // A checkpoint does not wait unpublished for the evaluation.
    const auto published = ended.output.find(fmt::format("checkpoint of step {}:", step));
    EXPECT_LT(published, ended.output.find(fmt::format("evaluation after step {}:", step))) << ended.output;
  }
}

TEST_F(Evaluation, SignalInsideItEndsTheTrainingWithACheckpoint) {
  const Words many = {"--checkpoint.every=0", "--evaluate.max_new_tokens=200"};
  {
    Program program(2, training("signalled", many));
    while (program.running() && count_lines(path("signalled") + "/metrics.jsonl") < 2) {
      std::this_thread::sleep_for(std::chrono::microseconds(200));
    }
    kill(program.process_of_rank(1), SIGTERM);
    EXPECT_EQ(program.wait(), 75) << program.output();
    EXPECT_NE(program.output().find("stopped early after step 2 of 4"), std::string::npos) << program.output();
  }
  EXPECT_FALSE(fs::exists(path("signalled") + "/evaluations/step-00000002.json"));

  const Ended rest = run(2, training("signalled", many));

  EXPECT_EQ(rest.exit_code, 0) << rest.output;
  EXPECT_TRUE(fs::exists(path("signalled") + "/evaluations/step-00000002.json"));
  EXPECT_EQ(difference_of_metrics(path("trained"), path("signalled")), "");
}

TEST_F(Evaluation, ARunFolderThatIsTakenAwayIsNotMadeAnew) {
  Program program(2, training("taken", {"--run.steps=400", "--checkpoint.every=0"}));
  while (program.running() && count_lines(path("taken") + "/metrics.jsonl") < 3) {
    std::this_thread::sleep_for(std::chrono::microseconds(200));
  }
  fs::rename(path("taken"), path("elsewhere"));

  EXPECT_EQ(program.wait(), 1) << program.output();
  EXPECT_NE(program.output().find(path("taken") + "/evaluations"), std::string::npos) << program.output();
  EXPECT_FALSE(fs::exists(path("taken")));
}

TEST_F(Evaluation, ATrainingGoesOnWithTheEvaluationItMissed) {
  const Ended first = run(2, training("in_two_parts", {"--run.steps=2", "--evaluate.every=0"}));
  ASSERT_EQ(first.exit_code, 0) << first.output;
  const Ended second = run(2, training("in_two_parts"));
  ASSERT_EQ(second.exit_code, 0) << second.output;
  EXPECT_EQ(difference_of_metrics(path("trained"), path("in_two_parts")), "");
  EXPECT_EQ(difference_of_checkpoints(newest_of(path("trained")), newest_of(path("in_two_parts"))), "");
  for (const char* file : {"step-00000002.json", "step-00000004.json"}) {
    EXPECT_TRUE(fs::exists(path("in_two_parts") + "/evaluations/" + file)) << file << second.output;
  }
}

}  // namespace
}  // namespace flanmoe::regression
