// The deck as users meet it: values, presets, overrides, and the problems that a wrong deck is told.
#include "deck/deck.hpp"

#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <regex>
#include <set>
#include <sstream>

#include "base/error.hpp"
#include "deck/table.hpp"

namespace flanmoe {
namespace {

/// An input file that lives as long as the test.
class DeckTest : public testing::Test {
 protected:
  void SetUp() override {
    folder_ = std::filesystem::path(testing::TempDir()) /
              fmt::format("flanmoe_deck_{}", testing::UnitTest::GetInstance()->current_test_info()->name());
    std::filesystem::create_directories(folder_);
    path_ = folder_ / "a.ini";
  }
  void TearDown() override { std::filesystem::remove_all(folder_); }
  Deck parse(const std::string& text, const std::vector<std::string>& overrides = {}) const {
    std::ofstream(path_) << text;
    return parse_deck(path_, overrides);
  }
  /// The lines of the message that parsing ends with, the file's folder cut off.
  std::vector<std::string> problems(const std::string& text, const std::vector<std::string>& overrides = {}) const {
    try {
      parse(text, overrides);
    } catch (const UsageError& error) {
      std::vector<std::string> lines;
      std::istringstream stream(error.what());
      for (std::string line; std::getline(stream, line);)
        lines.push_back(std::regex_replace(line, std::regex(folder_.string() + "/| +$|^ +"), ""));
      return lines;
    }
    return {};
  }
  using Lines = std::vector<std::string>;
  std::filesystem::path folder_, path_;
};

TEST_F(DeckTest, KeysThatAreNotSetKeepTheDefaultsOfTheStructs) {
  const Deck deck = parse("[run]\nsteps = 7\n"), fresh;
  EXPECT_EQ(deck.run.steps, 7);
  EXPECT_EQ(deck.batch.rows, fresh.batch.rows);
  EXPECT_EQ(deck.optimizer.epsilon, fresh.optimizer.epsilon);
}

TEST_F(DeckTest, EveryTypeOfValueIsRead) {
  const Deck deck = parse(
      "# a comment\n[run]\nstage = instruct  # another\ndir= a folder/with spaces\n\n[model]\ndropout =0.05\n"
      "tied_logits = yes\n[moe]\nz_coefficient = 1e-3\n[data]\ntasks =\n");
  EXPECT_EQ(deck.run.stage, "instruct");
  EXPECT_EQ(deck.run.dir, "a folder/with spaces");
  EXPECT_EQ(deck.model.dropout, 0.05);
  EXPECT_TRUE(deck.model.tied_logits);
  EXPECT_EQ(deck.moe.z_coefficient, 1e-3);
  EXPECT_EQ(deck.data.tasks, "");
}

TEST_F(DeckTest, AnOverrideWinsOverTheFile) {
  const Deck deck =
      parse("[run]\nsteps = 7\ninit_from = there\n", {"--run.steps=9", "--data.train=a=b c.h5", "--run.init_from="});
  EXPECT_EQ(deck.run.steps, 9);
  EXPECT_EQ(deck.data.train, "a=b c.h5");
  EXPECT_EQ(deck.run.init_from, "");
}

TEST_F(DeckTest, APresetFillsOnlyKeysThatAreNotSet) {
  const Deck deck = parse("[model]\npreset = switch\ninit_scale = 0.5\n", {"--moe.min_capacity=9"});
  EXPECT_EQ(deck.moe.router, "top_k");
  EXPECT_EQ(deck.model.activation, "relu");
  EXPECT_TRUE(deck.model.tied_logits);
  EXPECT_EQ(deck.moe.capacity_factor, 1.25);
  EXPECT_EQ(deck.model.init_scale, 0.5);
  EXPECT_EQ(deck.moe.min_capacity, 9);
}

TEST_F(DeckTest, APresetMayComeFromTheCommandLine) {
  const Deck deck = parse("[model]\npreset = switch\n[moe]\nexperts = 16\n", {"--model.preset=gshard"});
  EXPECT_EQ(deck.moe.top_k, 2);
  EXPECT_TRUE(deck.moe.renormalize);
  EXPECT_EQ(deck.moe.capacity_factor, 1.0);
  EXPECT_TRUE(deck.moe.capacity_times_k);
  EXPECT_FALSE(deck.model.tied_logits);
  EXPECT_EQ(deck.model.activation, "gated_gelu");
  EXPECT_EQ(deck.moe.experts, 16);
}

// Where published implementations differ, the presets stand on the side that their sentences name.
TEST_F(DeckTest, SparsePresetsSetEveryKeyOfTheirRouting) {
  const auto moe = [&](const std::string& preset) { return parse("[model]\npreset = " + preset + "\n").moe; };
  const auto on_paper_side = [](const MoeDeck& m) {
    return m.capacity_rounding == "down" && m.balance_choices == "first" && m.auxiliary_over_layers == "sum";
  };
  const MoeDeck one = moe("switch"), gshard = moe("gshard"), token = moe("token_choice"), expert = moe("expert_choice"),
                st = moe("st_moe");
  for (const MoeDeck& m : {one, gshard, st}) EXPECT_TRUE(on_paper_side(m));
  for (const MoeDeck& m : {token, expert}) {
    EXPECT_EQ(m.capacity_rounding, "nearest");
    EXPECT_EQ(m.balance_choices, "all");
    EXPECT_EQ(m.auxiliary_over_layers, "mean");
    EXPECT_EQ(m.top_k, 2);
    EXPECT_FALSE(m.renormalize || m.capacity_times_k);
    EXPECT_EQ(m.second_policy, "all");
  }
  EXPECT_EQ(one.top_k, 1);
  EXPECT_EQ(one.jitter, 0.01);
  EXPECT_EQ(gshard.second_policy, "random");
  EXPECT_EQ(gshard.second_threshold, 0.5);
  EXPECT_EQ(gshard.second_policy_eval, "all");
  EXPECT_TRUE(gshard.renormalize);
  EXPECT_EQ(token.priority, "probability");
  EXPECT_EQ(token.decoder_priority, "token_order");
  EXPECT_EQ(token.every, 4);
  EXPECT_EQ(expert.router, "expert_choice");
  EXPECT_EQ(expert.decoder_router, "top_k");
  EXPECT_EQ(expert.capacity_factor, 1.0);
  EXPECT_EQ(expert.every, 2);
  EXPECT_EQ(st.second_policy, "random");
  EXPECT_EQ(st.second_threshold, 0.2);
  EXPECT_EQ(st.z_coefficient, 0.001);
  EXPECT_TRUE(st.renormalize && st.extra_feed_forward);
  for (const MoeDeck& m : {one, gshard, token, expert, st}) {
    EXPECT_EQ(m.min_capacity, 4);
    EXPECT_EQ(m.balance_coefficient, 0.01);
    EXPECT_EQ(m.balance_scale, "switch");
  }
  // The same keys, so that nothing of one preset stays open in another.
  const auto keys = [](const std::string& name) {
    std::set<std::string> all;
    for (const auto& preset : deck_detail::presets()) {
      if (preset.name != name) continue;
      for (const auto& value : preset.values) EXPECT_TRUE(all.insert(value.key).second) << name << " " << value.key;
    }
    return all;
  };
  for (const char* name : {"gshard", "token_choice", "expert_choice", "st_moe"}) EXPECT_EQ(keys(name), keys("switch"));
}

TEST_F(DeckTest, AnUnknownKeyIsNamedWithTheNearestOne) {
  EXPECT_EQ(problems("[model]\n\nwidht = 64\n"),
            (Lines{"a.ini: 1 problem", "a.ini:3: unknown key model.widht; nearest is model.width"}));
}

TEST_F(DeckTest, AKeyInTheWrongSectionPointsToTheRightOne) {
  EXPECT_EQ(problems("steps = 3\n[optimizer]\nexperts = 4\n"),
            (Lines{"a.ini: 2 problems", "a.ini:1: unknown key steps; nearest is run.steps",
                   "a.ini:3: unknown key optimizer.experts; nearest is moe.experts"}));
}

TEST_F(DeckTest, AnUnknownSectionIsToldOnce) {
  EXPECT_EQ(problems("[modle]\nwidth = 64\nheads = 2\n"),
            (Lines{"a.ini: 1 problem", "a.ini:1: unknown section [modle]; nearest is [model]"}));
}

TEST_F(DeckTest, WrongTypesSayWhatIsExpected) {
  EXPECT_EQ(
      problems("[run]\nsteps = 1e3\nstage = tune\n[model]\ntied_logits = maybe\ndropout = x\n[batch]\nrows =\n"),
      (Lines{
          "a.ini: 5 problems", "a.ini:2: run.steps: expected an integer at least 1, found '1e3'",
          "a.ini:3: run.stage: expected one of pretrain, instruct, finetune, evaluate, plan, found 'tune'; nearest is "
          "finetune",
          "a.ini:5: model.tied_logits: expected true or false, found 'maybe'",
          "a.ini:6: model.dropout: expected a number from 0 to below 1, found 'x'",
          "a.ini:8: batch.rows: expected an integer at least 1, found ''"}));
}

TEST_F(DeckTest, ValuesOutOfRangeAreRefusedAtBothEnds) {
  for (const char* wrong :
       {"model.dropout=1", "model.dropout=-0.1", "model.init_scale=0", "optimizer.final_fraction=1.5", "run.steps=0",
        "run.steps=99999999999999999999", "model.z_loss=nan", "model.z_loss=inf"})
    EXPECT_EQ(problems("", {std::string("--") + wrong}).size(), 2u) << wrong;
  for (const char* right : {"model.dropout=0", "model.dropout=0.999", "optimizer.final_fraction=1", "run.steps=1"})
    EXPECT_EQ(problems("", {std::string("--") + right}), Lines()) << right;
}

TEST_F(DeckTest, AllProblemsAreReportedAtOnce) {
  EXPECT_EQ(problems("[run]\nsteps = many\nnonsense\n[model]\nwidth = 64\nwidth = 128\n[batch]\nrow = 4\n",
                     {"--run.sede=3", "--model.dropout=2", "run.steps=4"}),
            (Lines{"a.ini: 7 problems", "a.ini:3: expected [section], key = value or # comment, found 'nonsense'",
                   "a.ini:2: run.steps: expected an integer at least 1, found 'many'",
                   "a.ini:6: model.width is set twice, expected once; first at a.ini:5",
                   "a.ini:8: unknown key batch.row; nearest is batch.rows",
                   "command line: expected --section.key=value, found 'run.steps=4'",
                   "command line: unknown key run.sede; nearest is run.seed",
                   "command line: model.dropout: expected a number from 0 to below 1, found '2'"}));
}

TEST_F(DeckTest, AKeyTwiceOnTheCommandLineIsAProblem) {
  EXPECT_EQ(problems("", {"--run.seed=3", "--run.seed=4"}),
            (Lines{"a.ini: 1 problem", "command line: run.seed is set twice, expected once; first at command line"}));
}

TEST_F(DeckTest, LineNumbersHoldBehindCommentsAndWindowsLineEnds) {
  EXPECT_EQ(problems("# one\r\n[run]\r\nseed = 3\r\n\r\n# five = 5\r\nsede = 4\r\n")[1],
            "a.ini:6: unknown key run.sede; nearest is run.seed");
}

TEST_F(DeckTest, AFileThatCannotBeReadIsNamed) {
  EXPECT_THROW(parse_deck(folder_ / "none.ini", {}), UsageError);
  EXPECT_THROW(parse_deck(folder_, {}), UsageError);
}

TEST_F(DeckTest, ThePrintedDeckReadsBackToTheSameValues) {
  Deck deck = parse("[model]\npreset = gshard\ninit_scale = 0.30000000000000004\n[data]\ntrain = a/*.h5 b.h5\n",
                    {"--optimizer.epsilon=1e-30", "--run.seed=9007199254740993", "--moe.renormalize=false"});
  const std::string text = print_deck(deck);
  const Deck again = parse(text);
  EXPECT_EQ(print_deck(again), text);
  EXPECT_EQ(again.model.init_scale, 0.30000000000000004);
  EXPECT_EQ(again.optimizer.epsilon, 1e-30);
  EXPECT_EQ(again.run.seed, 9007199254740993);
  EXPECT_FALSE(again.moe.renormalize);
  EXPECT_EQ(hash_deck(again), hash_deck(deck));
}

TEST_F(DeckTest, EveryKeyRoundTripsWithAValueThatIsNotItsDefault) {
  for (const auto& parameter : deck_detail::parameter_table()) {
    if (parameter.choices.size() == 1) continue;  // its default is the only value
    Deck deck;
    const std::string before = deck_detail::value_text(deck, parameter);
    std::vector<std::string> candidates = parameter.choices;
    if (candidates.empty()) candidates = {"17", "0.375", "true", "false"};
    for (const std::string& candidate : candidates)
      if (candidate != before && !deck_detail::set_from_text(deck, parameter, candidate)) break;
    const std::string after = deck_detail::value_text(deck, parameter);
    EXPECT_NE(after, before) << parameter.key;
    EXPECT_EQ(deck_detail::value_text(parse(print_deck(deck)), parameter), after) << parameter.key;
    EXPECT_NE(hash_deck(deck), hash_deck(Deck())) << parameter.key;
  }
}

TEST_F(DeckTest, ATextThatADeckCannotHoldIsRefused) {
  EXPECT_EQ(problems("", {"--run.dir=a#b"})[1],
            "command line: run.dir: expected a text that is not empty and has no '#', found 'a#b'");
  EXPECT_EQ(problems("[run]\ndir =\n").size(), 2u);
}

TEST(DeckHelp, NamesUnitRangeDefaultAndPresets) {
  const std::string help = describe_keys("moe.capacity_factor");
  for (const char* part : {"moe.capacity_factor = 1.25", "a number at least 0", "preset gshard: 1"})
    EXPECT_NE(help.find(part), std::string::npos) << part << " in " << help;
  EXPECT_NE(describe_keys("run.steps").find("an integer at least 1, in steps"), std::string::npos);
}

TEST(DeckHelp, OfAnUnknownKeyPointsToTheNearest) {
  try {
    describe_keys("moe.topk");
    FAIL() << "no error";
  } catch (const UsageError& error) {
    EXPECT_STREQ(error.what(), "unknown key moe.topk; nearest is moe.top_k");
  }
}

}  // namespace
}  // namespace flanmoe
