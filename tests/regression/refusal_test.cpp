// What is wrong is said, with the right exit code, and nothing is written.
#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/file.h>
#include <unistd.h>

#include <fstream>

#include "base/error.hpp"
#include "base/hdf5.hpp"
#include "data/shard.hpp"
#include "regression/program.hpp"

namespace flanmoe::regression {
namespace {

namespace fs = std::filesystem;

class Refusal : public testing::Test {
 protected:
  static void SetUpTestSuite() { silence_hdf5(); }
  void SetUp() override {
    shard_ = write_pairs(workplace_);
    dir_ = workplace_.path("run");
  }
  Words command(const Words& more = {}) const { return smoke(shard_, dir_, more); }
  void expect_refused(const Ended& ended, const std::vector<std::string>& parts) const {
    EXPECT_EQ(ended.exit_code, 2) << ended.output;
    for (const std::string& part : parts) {
      EXPECT_NE(ended.output.find(part), std::string::npos) << part << "\nnot in:\n" << ended.output;
    }
    EXPECT_FALSE(fs::exists(dir_)) << "something was written";
  }
  static std::size_t count(const std::string& text, const std::string& part) {
    std::size_t n = 0;
    for (auto at = text.find(part); at != std::string::npos; at = text.find(part, at + 1)) ++n;
    return n;
  }
  Workplace workplace_;
  std::string shard_, dir_;
};

TEST_F(Refusal, WrongDeckListsEveryProblemOnceFromRankZero) {
  const Ended ended = run(3, command({"--run.stpes=5", "--batch.rows=16", "--model.dropout=2"}));

  expect_refused(ended, {"run.stpes", "run.steps", "model.dropout"});
  EXPECT_EQ(count(ended.output, "model.dropout"), 1U) << ended.output;
}

TEST_F(Refusal, LayoutThatDoesNotDivideIsRefusedWithTheArithmetic) {
  expect_refused(run(3, command({"--batch.rows=16"})), {"batch.rows = 16", "3 ranks"});
  expect_refused(run(2, command({"--parallel.expert=4"})), {"parallel.expert = 4", "2 ranks"});
}

/// Of a program with CUDA on a machine without a GPU, and of one without CUDA.
TEST_F(Refusal, GpuThatIsNotThereIsRefusedOnce) {
  const Ended ended = run(2, command({"--run.device=cuda"}), {"CUDA_VISIBLE_DEVICES="});
  expect_refused(ended, {"run.device = cuda: "});
  EXPECT_EQ(count(ended.output, "run.device = cuda"), 1U) << ended.output;
}

TEST_F(Refusal, RankCountThatSlurmDoesNotKnowIsRefusedWithTheUsualCause) {
  expect_refused(run(2, command(), {"SLURM_NTASKS=4"}), {"4 tasks", "2 ranks", "pmix"});
}

TEST_F(Refusal, ShardsOfAnotherTokenizerThanTheWeightsAre) {
  const std::string trained = workplace_.path("trained"), other = workplace_.path("other.h5");
  ASSERT_EQ(run(1, smoke(shard_, trained, {"--run.steps=1", "--checkpoint.every=1"})).exit_code, 0);
  {
    const ShardReader first(shard_);
    TokenizerIdentity tokenizer = first.tokenizer();
    tokenizer.fingerprint = "another";
    ShardWriter writer(other, tokenizer);
    for (std::int64_t i = 0; i < first.size(); ++i) writer.add(first.read(i));
    writer.finish();
  }
  fs::rename(other, shard_);
  expect_refused(run(1, command({"--run.stage=finetune", "--run.init_from=" + trained})),
                 {"run.init_from", "was trained with tokenizer toy", "data.train is written with tokenizer another"});
  const Ended going_on = run(1, smoke(shard_, trained, {"--run.steps=2"}));
  EXPECT_EQ(going_on.exit_code, 2) << going_on.output;
  EXPECT_NE(going_on.output.find("was trained with tokenizer toy"), std::string::npos) << going_on.output;
}

TEST_F(Refusal, InstructionTuningRefusesRawText) {
  shard_ = write_text(workplace_);
  expect_refused(run(1, command({"--run.stage=instruct"})), {"instruct", "text"});
}

TEST_F(Refusal, UnknownWeightsAndTasksAreRefused) {
  expect_refused(run(1, command({"--run.init_from=" + workplace_.path("nowhere")})), {"run.init_from"});
  expect_refused(run(2, command({"--data.tasks=nonsense"})), {"nonsense"});
}

TEST_F(Refusal, QuestionsAreAnsweredWithoutLauncherAndWriteNothing) {
  for (const char* flag : {"--check", "--print"}) {
    const Ended ended = run(0, command({flag}));
    EXPECT_EQ(ended.exit_code, 0) << ended.output;
    EXPECT_FALSE(fs::exists(dir_));
  }
  EXPECT_NE(run(0, command({"--print"})).output.find("dir = " + dir_), std::string::npos);
  EXPECT_EQ(run(0, command({"--check", "--run.steps=x"})).exit_code, 2);
  EXPECT_NE(run(0, {"--help", "batch.rows"}).output.find("batch.rows"), std::string::npos);
  EXPECT_EQ(run(0, {"--help", "batch.rwos"}).exit_code, 2);
  EXPECT_NE(run(0, {"--version"}).output.find("oneDNN"), std::string::npos);
  EXPECT_EQ(run(0, {}).exit_code, 2);

  const Ended checked = run(3, command({"--check", "--batch.rows=16"}));
  expect_refused(checked, {"3 ranks"});
  EXPECT_EQ(count(checked.output, "batch.rows = 16"), 1U) << checked.output;
}

TEST_F(Refusal, DamagedShardIsNamed) {
  const auto size = fs::file_size(shard_);
  fs::resize_file(shard_, size / 2);
  const Ended truncated = run(2, command());
  EXPECT_EQ(truncated.exit_code, 1) << truncated.output;
  EXPECT_NE(truncated.output.find(shard_), std::string::npos) << truncated.output;
  EXPECT_FALSE(fs::exists(dir_));

  fs::remove(shard_);
  std::ofstream(shard_) << "no HDF5";
  const Ended other = run(2, command());
  EXPECT_EQ(other.exit_code, 1) << other.output;
  EXPECT_NE(other.output.find(shard_), std::string::npos) << other.output;
}

TEST_F(Refusal, ShardFoundDamagedWhileTrainingEndsAllRanks) {
  shard_ = write_text(workplace_);
  std::fstream file(shard_, std::ios::in | std::ios::out | std::ios::binary);
  file.seekp(std::streamoff(fs::file_size(shard_) / 2));  // inside the tokens, which are most of the file
  file << std::string(64, '\x5a');
  file.close();

  const Ended ended = run(3, command());

  EXPECT_EQ(ended.exit_code, 1) << ended.output;
  EXPECT_NE(ended.output.find(shard_), std::string::npos) << ended.output;
  EXPECT_NE(ended.output.find("checksum"), std::string::npos) << ended.output;
  EXPECT_FALSE(fs::exists(dir_ + "/summary.json"));
}

TEST_F(Refusal, FolderOfAnotherRunIsRefused) {
  fs::create_directories(dir_);
  const int lock = open((dir_ + "/lock").c_str(), O_RDWR | O_CREAT, 0666);
  ASSERT_EQ(flock(lock, LOCK_EX), 0);

  const Ended ended = run(2, command());

  EXPECT_EQ(ended.exit_code, 2);
  EXPECT_NE(ended.output.find("in use by another run"), std::string::npos) << ended.output;
  EXPECT_FALSE(fs::exists(dir_ + "/metrics.jsonl"));
  close(lock);
}

TEST_F(Refusal, LossOrNormThatIsNotFiniteStopsAllRanksBeforeTheUpdate) {
  // Weights of 1e30 overflow in the backward first; weights beyond fp32 make the loss itself NaN.
  for (const auto& [rate, what] :
       {std::pair{"1e30", "the gradient norm is not finite"}, {"1e39", "the loss is not finite"}}) {
    const Ended ended =
        run(2, command({"--optimizer.name=adamw", "--optimizer.schedule=constant", "--optimizer.warmup_steps=0",
                        "--optimizer.clip_norm=0", fmt::format("--optimizer.learning_rate={}", rate)}));

    EXPECT_EQ(ended.exit_code, 1) << ended.output;
    EXPECT_NE(ended.output.find(fmt::format("step 2: {}", what)), std::string::npos) << ended.output;
    EXPECT_NE(ended.output.find("stopped before the update"), std::string::npos) << ended.output;
    EXPECT_NE(ended.output.find("on host"), std::string::npos) << ended.output;
    EXPECT_EQ(metrics_of(dir_).size(), 1U);
  }
}

}  // namespace
}  // namespace flanmoe::regression
