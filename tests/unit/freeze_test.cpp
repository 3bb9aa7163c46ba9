// Which parameters optimizer.freeze names, and where upcycled ones start.
#include "model/freeze.hpp"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <set>

#include "model/model.hpp"
#include "model/upcycle.hpp"

namespace flanmoe {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

Deck small_deck(const std::string& router, const std::string& freeze) {
  Deck deck;
  deck.model.encoder_layers = deck.model.decoder_layers = 2;
  deck.moe.router = router;
  deck.optimizer.freeze = freeze;
  return deck;
}

std::set<std::string> frozen_names(const Deck& deck) {
  std::set<std::string> names;
  for (const ParameterSpec& spec : training_parameters(deck)) {
    if (!spec.trained) names.insert(spec.name);
  }
  return names;
}

std::set<std::string> frozen(const std::string& freeze) { return frozen_names(small_deck("top_k", freeze)); }

TEST(Freeze, EveryParameterIsInExactlyOneBasicSet) {
  for (const char* family : {"t5", "palm"}) {
    for (const char* router : {"none", "top_k"}) {
      Deck deck = small_deck(router, "");
      deck.model.family = family;
      deck.model.multiplicative_bias = deck.moe.extra_feed_forward = true;
      deck.moe.shared_experts = 1;
      deck.moe.bias_rate = 0.01;
      for (const ParameterSpec& spec : model_parameters(deck.model, deck.moe)) {
        int sets = 0;
        for (const FreezeSet& set : freeze_sets()) {
          if (set.name != "moe" && set.name != "all_but_moe") sets += set.contains(spec.name) ? 1 : 0;
        }
        EXPECT_EQ(sets, 1) << spec.name;
      }
    }
  }
}

TEST(Freeze, SetsHoldWhatTheirNamesSay) {
  EXPECT_EQ(frozen(""), std::set<std::string>());
  EXPECT_THAT(frozen("gate"),
              ElementsAre("decoder/layer_01/feed_forward/router", "encoder/layer_01/feed_forward/router"));
  EXPECT_EQ(frozen("experts").size(), 6U);
  EXPECT_TRUE(frozen("experts").contains("encoder/layer_01/feed_forward/expert_gate"));
  EXPECT_THAT(frozen("embeddings"), ElementsAre("embedding", "logits"));
  // Six attentions of four matrices and two tables of biases; ten and two norms; two dense feed-forwards.
  EXPECT_EQ(frozen("attention").size(), 6U * 4 + 2);
  EXPECT_EQ(frozen("norms").size(), 10U + 2);
  EXPECT_EQ(frozen("feed_forward").size(), 2U * 3);
  EXPECT_EQ(frozen("moe").size(), 8U);
}

TEST(Freeze, WordsAddUpAndPatternsNameParameters) {
  EXPECT_EQ(frozen("gate experts"), frozen("moe"));
  EXPECT_EQ(frozen("attention feed_forward norms embeddings"), frozen("all_but_moe"));
  EXPECT_THAT(frozen("encoder/layer_0?/feed_forward/router"), ElementsAre("encoder/layer_01/feed_forward/router"));
  for (const std::string& name : frozen("encoder/*")) EXPECT_TRUE(name.starts_with("encoder/"));
  EXPECT_EQ(frozen("*/expert_* gate"), frozen("moe"));
}

TEST(Freeze, ABiasThatShallMoveIsNotFrozen) {
  for (const char* freeze : {"gate", "moe", "encoder/*"}) {
    Deck deck = small_deck("top_k", freeze);
    EXPECT_TRUE(freeze_problems(deck).empty());
    deck.moe.bias_rate = 0.01;
    ASSERT_EQ(freeze_problems(deck).size(), 1U) << freeze;
    EXPECT_THAT(freeze_problems(deck)[0], HasSubstr("moe.bias_rate = 0.01 has no effect on encoder/layer_01/"));
    deck.optimizer.freeze = "experts";
    EXPECT_TRUE(freeze_problems(deck).empty());
  }
}

TEST(Freeze, WordThatMatchesNothingIsAProblemWithTheNearestNames) {
  EXPECT_TRUE(freeze_problems(small_deck("top_k", "gate encoder/*")).empty());
  const auto problems = freeze_problems(small_deck("top_k", "gatte encoder/final_nrom experts"));
  ASSERT_EQ(problems.size(), 2U);
  EXPECT_THAT(problems[0], HasSubstr("'gatte' matches none; nearest are set gate"));
  EXPECT_THAT(problems[1], HasSubstr("parameter encoder/final_norm"));
  const auto dense = freeze_problems(small_deck("none", "experts"));
  ASSERT_EQ(dense.size(), 1U);
  EXPECT_THAT(dense[0], HasSubstr("'experts' is a set of parameters that it does not have"));
}

TEST(Freeze, NothingLeftToTrainIsAProblem) {
  const auto problems = freeze_problems(small_deck("top_k", "moe all_but_moe"));
  ASSERT_EQ(problems.size(), 1U);
  EXPECT_THAT(problems[0], HasSubstr("nothing is trained"));
}

TEST(Freeze, IsSaidInTensorsAndParameters) {
  const Deck deck = small_deck("top_k", "gate");
  EXPECT_EQ(describe_frozen(model_parameters(deck.model, deck.moe), ""), "");
  EXPECT_THAT(describe_frozen(training_parameters(deck), "gate"),
              HasSubstr(fmt::format("frozen by optimizer.freeze = gate: 2 of 54 tensors, {} of ", 2 * 256 * 8)));
}

TEST(Upcycle, ExpertsComeFromTheFeedForwardRoutersFromTheSeedTheRestAsItIs) {
  Deck sparse = small_deck("top_k", ""), dense = small_deck("none", "");
  std::set<std::string> names, wanted;
  for (const ParameterSpec& spec : model_parameters(dense.model, dense.moe)) names.insert(spec.name);
  int fresh = 0;
  for (const ParameterSpec& spec : model_parameters(sparse.model, sparse.moe)) {
    const UpcycleSource source = upcycle_source(spec);
    fresh += source.from == UpcycleFrom::fresh ? 1 : 0;
    if (source.from == UpcycleFrom::fresh) continue;
    wanted.insert(source.dense.name);
    EXPECT_EQ(source.dense.matrix_size(), spec.matrix_size());
    EXPECT_EQ(source.from == UpcycleFrom::feed_forward, spec.placement == Placement::expert) << spec.name;
    EXPECT_EQ(source.dense.experts, 1);
  }
  EXPECT_EQ(wanted, names);  // nothing of the dense model is left over
  EXPECT_EQ(fresh, 2);
}

}  // namespace
}  // namespace flanmoe
