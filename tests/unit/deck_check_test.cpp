// Checks that need several keys, the number of ranks, or files.
#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>

#include "base/error.hpp"
#include "deck/deck.hpp"

namespace flanmoe {
namespace {

class DeckCheck : public testing::Test {
 protected:
  void SetUp() override {
    folder_ = std::filesystem::path(testing::TempDir()) /
              fmt::format("flanmoe_check_{}", testing::UnitTest::GetInstance()->current_test_info()->name());
    std::filesystem::create_directories(folder_ / "run" / "checkpoints");
    for (const char* name : {"a.h5", "b.h5", "tokenizer.model"}) std::ofstream(folder_ / name) << "x";
    deck_.data.train = (folder_ / "*.h5").string();
    deck_.run.dir = (folder_ / "new").string();
  }
  void TearDown() override { std::filesystem::remove_all(folder_); }
  /// What check_deck says, empty when it accepts.
  std::string problems(int world_size = 1) const {
    try {
      check_deck(deck_, world_size);
    } catch (const UsageError& error) {
      return error.what();
    }
    return "";
  }
  void expect_problem(const std::string& part, int world_size = 1) const {
    EXPECT_NE(problems(world_size).find(part), std::string::npos) << part << "\nnot in: " << problems(world_size);
  }
  void become_evaluation() {
    deck_.run.stage = "evaluate";
    deck_.evaluate.shards = (folder_ / "a.h5").string();
    deck_.data.tokenizer = (folder_ / "tokenizer.model").string();
    deck_.run.init_from = (folder_ / "run").string();
  }
  std::filesystem::path folder_;
  Deck deck_;
};

TEST_F(DeckCheck, DefaultsWithDataAreAcceptedOnRanksThatDivide) {
  for (const int ranks : {0, 1, 2, 4, 8, 16}) EXPECT_EQ(problems(ranks), "");
}

TEST_F(DeckCheck, RowsMustDivideByRanks) {
  expect_problem("batch.rows = 16 does not divide by 3 ranks: 5 rows each leave 1; nearest is 15 or 18", 3);
  deck_.batch.rows = 2;
  expect_problem("nearest is 4", 4);
}

TEST_F(DeckCheck, RowsOfARankMustDivideByMicrobatches) {
  deck_.batch.microbatch_rows = 3;
  expect_problem(
      "batch.microbatch_rows = 3 does not divide the rows of a rank: 16 rows / 2 ranks = 8 rows, and 8 % 3 = 2", 2);
  deck_.batch.microbatch_rows = 16;
  expect_problem("8 % 16 = 8", 2);
  EXPECT_EQ(problems(1), "");
}

TEST_F(DeckCheck, LeavesAreAPowerOfTwo) {
  deck_.reduction.leaves = 6;
  expect_problem("reduction.leaves = 6: expected a power of two, 4 or 8, or 0", 2);
}

TEST_F(DeckCheck, LeavesAreAsManyAsRowsGroupsAndMicrobatchesAllow) {
  deck_.reduction.leaves = 8;
  EXPECT_EQ(leaves_of(deck_), 8) << "of 16 rows";
  deck_.reduction.leaves = 32;
  EXPECT_EQ(leaves_of(deck_), 16) << "one row each";
  deck_.reduction.leaves = 8;
  deck_.batch.microbatch_rows = 4;
  EXPECT_EQ(leaves_of(deck_), 8) << "two in a microbatch";
  deck_.batch.microbatch_rows = 1;
  EXPECT_EQ(leaves_of(deck_), 0) << "a leaf of two rows is more than a microbatch";
  deck_.batch.microbatch_rows = 6;
  deck_.batch.rows = 48;
  EXPECT_EQ(leaves_of(deck_), 8);
  deck_.batch.rows = 24;
  EXPECT_EQ(leaves_of(deck_), 8) << "leaves of three rows";
  deck_.batch.microbatch_rows = 0;
  deck_.batch.rows = 12;
  EXPECT_EQ(leaves_of(deck_), 4);
  deck_.moe.router = "top_k";
  deck_.moe.group_rows = 6;
  EXPECT_EQ(leaves_of(deck_), 2);
  deck_.moe.group_rows = 4;
  EXPECT_EQ(leaves_of(deck_), 0) << "six rows are no whole groups";
  deck_.reduction.leaves = 0;
  deck_.moe.group_rows = 1;
  EXPECT_EQ(leaves_of(deck_), 0);
}

TEST_F(DeckCheck, RanksThatDoNotDivideTheLeavesDoNotUseThem) {
  deck_.reduction.leaves = 4;
  deck_.batch.rows = 24;
  EXPECT_EQ(problems(3), "");
  EXPECT_FALSE(uses_leaves(deck_, 3));
  EXPECT_TRUE(uses_leaves(deck_, 4));
  EXPECT_FALSE(uses_leaves(deck_, 8));
}

TEST_F(DeckCheck, RouterGroupsMustDivideMicrobatches) {
  deck_.moe.router = "top_k";
  deck_.moe.group_rows = 3;
  deck_.batch.microbatch_rows = 4;
  expect_problem(
      "moe.group_rows = 3 does not divide the rows of a microbatch: 16 rows / 2 ranks / 2 microbatches = 4 rows", 2);
  deck_.batch.microbatch_rows = 0;
  deck_.moe.group_rows = 8;
  EXPECT_EQ(problems(2), "") << "0 means the 8 rows of the rank";
  deck_.moe.group_rows = 3;
  deck_.moe.router = "none";
  EXPECT_EQ(problems(2), "");
}

TEST_F(DeckCheck, ExpertDegreeMustDivideExpertsAndWorld) {
  deck_.moe.router = "top_k";
  deck_.moe.experts = 6;
  deck_.parallel.expert = 4;
  expect_problem("moe.experts = 6 does not divide by parallel.expert = 4: 6 % 4 = 2; nearest is 4 or 8", 2);
  expect_problem("2 ranks do not divide by parallel.expert = 4: world = data x expert, and 2 % 4 = 2", 2);
  expect_problem("the deck on 2 ranks: 2 problems", 2);
  deck_.moe.experts = 8;
  EXPECT_EQ(problems(4), "");
  EXPECT_EQ(problems(0), "");
}

TEST_F(DeckCheck, ADenseModelMayKeepTheExpertDegreeOfItsTwin) {
  deck_.parallel.expert = 2;
  deck_.moe.experts = 3;
  EXPECT_EQ(problems(2), "");
}

TEST_F(DeckCheck, ATokenCannotChooseMoreExpertsThanThereAre) {
  deck_.moe.router = "top_k";
  deck_.moe.experts = 2;
  deck_.moe.top_k = 3;
  expect_problem("moe.top_k = 3: expected at most moe.experts = 2");
}

TEST_F(DeckCheck, ARenormalizedSingleChoiceCannotLearnItsRouter) {
  deck_.moe.router = "top_k";
  deck_.moe.renormalize = true;
  expect_problem("moe.renormalize = true with moe.top_k = 1");
  deck_.optimizer.freeze = "attention gate";
  EXPECT_EQ(problems(), "") << "a frozen router is not to learn";
  deck_.optimizer.freeze = "";
  expect_problem("moe.renormalize = true with moe.top_k = 1");
  deck_.moe.top_k = 2;
  EXPECT_EQ(problems(), "");
}

TEST_F(DeckCheck, ASecondChoiceNeedsASecondExpert) {
  deck_.moe.router = "top_k";
  deck_.moe.second_policy = "random";
  deck_.moe.second_policy_eval = "threshold";
  expect_problem("moe.second_policy = random with moe.top_k = 1: there is no second choice");
  expect_problem("moe.second_policy_eval = threshold with moe.top_k = 1");
  deck_.moe.top_k = 2;
  EXPECT_EQ(problems(), "");
}

TEST_F(DeckCheck, AThresholdThatNoSecondWeightExceedsIsRefused) {
  deck_.moe.router = "top_k";
  deck_.moe.top_k = 2;
  deck_.moe.renormalize = true;
  deck_.moe.second_policy = deck_.moe.second_policy_eval = "threshold";
  EXPECT_EQ(problems(), "");
  deck_.moe.second_threshold = 0.5;
  expect_problem("moe.second_policy = threshold with moe.second_threshold = 0.5: no later choice");
  expect_problem("moe.second_policy_eval = threshold with moe.second_threshold = 0.5");
  deck_.moe.bias_rate = 0.1;  // then a later choice may weigh more
  EXPECT_EQ(problems(), "");
}

TEST_F(DeckCheck, DecodersWhoseExpertsChooseDoNotGenerate) {
  become_evaluation();
  deck_.moe.router = "top_k";
  deck_.moe.decoder_router = "expert_choice";
  deck_.evaluate.rank = true;
  deck_.evaluate.generate = true;
  expect_problem("evaluate.generate = true with moe.decoder_router = expert_choice");
  deck_.moe.capacity_factor_eval = 8;
  EXPECT_EQ(problems(), "");
  deck_.moe.capacity_factor_eval = 2;
  deck_.evaluate.generate = false;
  EXPECT_EQ(problems(), "");
}

TEST_F(DeckCheck, ExpertsThatChooseNeedACapacity) {
  deck_.moe.router = "expert_choice";
  deck_.moe.capacity_factor = deck_.moe.capacity_factor_eval = 0;
  expect_problem("moe.capacity_factor = 0: expected above 0, experts that choose");
  expect_problem("moe.capacity_factor_eval = 0");
  deck_.moe.encoder = false;  // then no expert chooses
  expect_problem("moe.router = expert_choice has no effect: no layer of the encoder is sparse");
  deck_.moe.router = "top_k";
  EXPECT_EQ(problems(), "");
  deck_.moe.decoder_router = "expert_choice";
  expect_problem("moe.capacity_factor = 0");
}

TEST_F(DeckCheck, KeysOfTokenChoiceNeedTokensThatChoose) {
  deck_.moe.router = "expert_choice";
  deck_.moe.priority = "probability";
  expect_problem("moe.priority = probability has no effect where experts choose");
  deck_.moe.priority = "token_order";
  deck_.moe.decoder_priority = "probability";
  deck_.moe.top_k = 2;
  deck_.moe.renormalize = deck_.moe.capacity_times_k = true;
  deck_.moe.second_policy = "random";
  deck_.moe.second_policy_eval = "none";
  deck_.moe.bias_rate = 0.001;
  EXPECT_EQ(problems(), "");  // tokens choose in the decoder
  deck_.moe.decoder_router = "expert_choice";
  for (const char* key :
       {"moe.renormalize", "moe.capacity_times_k", "moe.second_policy", "moe.second_policy_eval", "moe.bias_rate"})
    expect_problem(fmt::format("{} has no effect: experts choose in every sparse layer", key));
  expect_problem("moe.decoder_priority = probability has no effect");
}

TEST_F(DeckCheck, ADecoderOnlyModelRoutesByTheKeysOfTheDecoder) {
  deck_.model.family = "palm";
  deck_.model.encoder_layers = 0;
  deck_.moe.router = "expert_choice";
  deck_.moe.priority = "probability";
  expect_problem("moe.router = expert_choice is for an encoder, model.family = palm has none; expected top_k");
  expect_problem("moe.priority = probability is for an encoder");
  deck_.moe.router = "top_k";
  deck_.moe.priority = "token_order";
  deck_.moe.decoder_router = "expert_choice";
  EXPECT_EQ(problems(), "");
}

TEST_F(DeckCheck, ForcedBalanceLeavesNothingToChoose) {
  deck_.moe.router = "top_k";
  deck_.moe.forced_balance = true;
  EXPECT_EQ(problems(), "");
  deck_.moe.bias_rate = 0.1;
  expect_problem("moe.bias_rate has no effect with moe.forced_balance = true");
  deck_.moe.router = "expert_choice";
  expect_problem("moe.forced_balance = true makes tokens take experts in turn");
}

TEST_F(DeckCheck, ARunThatGoesOnNeedsNothingFromWhereItBegan) {
  deck_.run.init_from = "moved/away";
  expect_problem("run.init_from: expected a checkpoint folder or a run folder, found none at moved/away");
  const std::string dir = (std::filesystem::temp_directory_path() / "flanmoe_goes_on").string();
  std::filesystem::create_directories(dir + "/checkpoints");
  deck_.run.dir = dir;
  EXPECT_EQ(problems(), "");
  std::filesystem::remove_all(dir);
}

TEST_F(DeckCheck, ARouterWithoutASparseLayerIsAProblem) {
  deck_.moe.router = "top_k";
  deck_.moe.every = 5;
  expect_problem("no layer is sparse: moe.every = 5 with 4 encoder layers");
  deck_.moe.every = 4;
  EXPECT_EQ(problems(), "");
  deck_.moe.encoder = deck_.moe.decoder = false;
  expect_problem("(moe.encoder = false)");
}

TEST_F(DeckCheck, BuffersHoldAtLeastWhatIsSent) {
  deck_.moe.router = "top_k";
  deck_.moe.buffer_factor = 0.5;
  expect_problem("moe.buffer_factor = 0.5: expected 0 or at least 1");
}

TEST_F(DeckCheck, PositionBucketsAreEvenAndShorterThanTheDistance) {
  deck_.model.bias_buckets = 33;
  deck_.model.bias_max_distance = 16;
  expect_problem("model.bias_buckets = 33: expected an even number");
  expect_problem("model.bias_max_distance = 16: expected more than model.bias_buckets / 2 = 33 / 2 = 16");
}

TEST_F(DeckCheck, ADecoderOnlyModelHasNoEncoder) {
  deck_.model.family = "palm";
  expect_problem("model.encoder_layers = 4: expected 0, model.family = palm has no encoder");
  deck_.model.encoder_layers = 0;
  EXPECT_EQ(problems(), "");
  deck_.model.head_width = 7;
  expect_problem("model.head_width = 7: expected an even number");
  deck_.model.family = "t5";
  expect_problem("model.encoder_layers = 0: expected at least 1");
}

TEST_F(DeckCheck, WhatOnlyADecoderOnlyModelCanDo) {
  deck_.model.attention = "prefix";
  deck_.data.objective = "causal_lm";
  expect_problem("model.attention = prefix needs model.family = palm");
  expect_problem("data.objective = causal_lm needs model.family = palm");
  deck_.model.family = "palm";
  deck_.model.encoder_layers = 0;
  EXPECT_EQ(problems(), "");
}

TEST_F(DeckCheck, KeyHeadsDivideHeads) {
  deck_.model.heads = 6;
  for (const std::int64_t good : {0, 1, 2, 3, 6}) {
    deck_.model.kv_heads = good;
    EXPECT_EQ(problems(), "");
  }
  deck_.model.kv_heads = 4;
  expect_problem("model.kv_heads = 4 does not divide model.heads = 6: 6 % 4 = 2");
  deck_.model.kv_heads = 12;
  expect_problem("model.kv_heads = 12 does not divide model.heads = 6");
}

TEST_F(DeckCheck, TheReferenceHasNoBf16) {
  deck_.run.device = "reference";
  EXPECT_EQ(problems(), "");
  deck_.run.precision = "bf16";
  expect_problem("run.precision = bf16 needs run.device = cpu");
}

TEST_F(DeckCheck, Tf32IsForGpus) {
  deck_.run.precision = "tf32";
  expect_problem("run.precision = tf32 needs run.device = cuda, found cpu");
  deck_.run.device = "cuda";
  EXPECT_EQ(problems(), "");
}

TEST_F(DeckCheck, StochasticRoundingNeedsWeightsThatAreRounded) {
  deck_.optimizer.stochastic_rounding = true;
  expect_problem("optimizer.stochastic_rounding = true has no effect with run.precision = fp32");
  deck_.run.precision = "bf16";
  EXPECT_EQ(problems(), "");
}

TEST_F(DeckCheck, WarmUpMustLeaveStepsForAFallingSchedule) {
  deck_.optimizer.warmup_steps = 100;
  deck_.run.steps = 100;
  EXPECT_EQ(problems(), "");
  for (const char* schedule : {"linear", "cosine"}) {
    deck_.optimizer.schedule = schedule;
    expect_problem("optimizer.warmup_steps = 100: expected below run.steps = 100");
  }
}

TEST_F(DeckCheck, TrainingNeedsShards) {
  deck_.data.train = (folder_ / "a.h5").string() + " " + (folder_ / "c*.h5").string();
  expect_problem("data.train: expected shard files, found none that match " + (folder_ / "c*.h5").string());
  deck_.data.train = "";
  expect_problem("data.train is empty: the pretrain stage needs shard files");
}

TEST_F(DeckCheck, TaskWeightsAreRead) {
  deck_.data.weights = "a*=2 b=0.5";
  EXPECT_EQ(problems(), "");
  for (const char* wrong : {"a", "=2", "a=", "a=-1", "a=2x"}) {
    deck_.data.weights = wrong;
    expect_problem(fmt::format("data.weights: expected pattern=weight with a weight at least 0, found '{}'", wrong));
  }
}

TEST_F(DeckCheck, EvaluationNeedsShardsTokenizerWeightsAndAMeasure) {
  become_evaluation();
  EXPECT_EQ(problems(3), "") << "the rows of a training batch do not matter";
  deck_.evaluate.shards = deck_.data.tokenizer = deck_.run.init_from = "";
  deck_.evaluate.generate = deck_.evaluate.rank = false;
  expect_problem("the deck on 1 ranks: 4 problems");
  expect_problem("evaluate.shards is empty");
  expect_problem("data.tokenizer is empty");
  expect_problem("run.init_from is empty");
  expect_problem("both false");
}

TEST_F(DeckCheck, EvaluationMayUseTheCheckpointsOfItsOwnRunFolder) {
  become_evaluation();
  deck_.run.init_from = "";
  deck_.run.dir = (folder_ / "run").string();
  EXPECT_EQ(problems(), "");
}

TEST_F(DeckCheck, FilesAndFoldersThatAreMissingAreNamed) {
  deck_.data.tokenizer = "/no/tokenizer";
  deck_.run.init_from = "/no/run";
  deck_.run.dir = (folder_ / "a.h5").string();
  expect_problem("data.tokenizer: expected a SentencePiece model file, found none at /no/tokenizer");
  expect_problem("run.init_from: expected a checkpoint folder or a run folder, found none at /no/run");
  expect_problem("run.dir: expected a folder, found a file at");
}

TEST_F(DeckCheck, DecodingIsGreedyOrBeamsOrDrawn) {
  become_evaluation();
  EXPECT_EQ(problems(), "");
  deck_.evaluate.beams = 4;
  EXPECT_EQ(problems(), "");
  deck_.evaluate.temperature = 0.5;
  expect_problem("evaluate.beams = 4 and evaluate.temperature = 0.5: expected beam search or sampling");
  deck_.evaluate.beams = 1;
  deck_.evaluate.top_k = 5;
  EXPECT_EQ(problems(), "");
  deck_.evaluate.temperature = 0;
  expect_problem("evaluate.temperature = 0 draws none");
}

TEST_F(DeckCheck, StopStringsAreSplitAndUnescaped) {
  become_evaluation();
  deck_.evaluate.stop = R"(Q:|\n\n|a\|b\\|\tx)";
  EXPECT_EQ(stop_strings(deck_.evaluate), (std::vector<std::string>{"Q:", "\n\n", "a|b\\", "\tx"}));
  EXPECT_EQ(problems(), "");
  deck_.evaluate.stop = "";
  EXPECT_TRUE(stop_strings(deck_.evaluate).empty());
  for (const char* bad : {"a||b", "|", "a|"}) {
    deck_.evaluate.stop = bad;
    expect_problem("evaluate.stop: expected texts separated by |, found an empty one");
  }
  deck_.evaluate.stop = R"(a\q)";
  expect_problem("behind a backslash, found 'q'");
  deck_.evaluate.stop = "a\\";
  expect_problem("behind a backslash");
}

TEST_F(DeckCheck, ATrainingThatMeasuresItselfNeedsWhatAnEvaluationNeeds) {
  EXPECT_EQ(problems(), "");
  deck_.evaluate.every = 5;
  expect_problem("evaluate.shards is empty");
  expect_problem("data.tokenizer is empty");
  deck_.evaluate.shards = (folder_ / "a.h5").string();
  deck_.data.tokenizer = (folder_ / "tokenizer.model").string();
  EXPECT_EQ(problems(), "");
}

}  // namespace
}  // namespace flanmoe
