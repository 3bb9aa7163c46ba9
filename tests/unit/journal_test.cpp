// The journal of an evaluation gives back what was measured, bit for bit, and nothing else.
#include "evaluate/journal.hpp"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "data_fixture.hpp"

namespace flanmoe {
namespace {

using testing::HasSubstr;

Prediction prediction(int i) {
  Prediction p;
  p.ordinal = i;
  p.outcome.task = "task";
  p.outcome.category = "c";
  p.outcome.variant = "cot";
  p.outcome.info = {"bbh", "g", "whole", Extraction::letter, ScoreRule::rouge_l, 1.0 / 3};
  p.outcome.held_out = i % 2 == 0;
  p.outcome.trimmed = i % 3 == 0;
  p.outcome.generated = true;
  p.outcome.exact_match = i % 2 == 1;
  p.outcome.rouge_l = 1.0 / (3 + i);
  p.outcome.unfinished = i % 5 == 0;
  p.outcome.generated_tokens = 7;
  p.outcome.choices = 4;
  p.outcome.acc = i % 2 == 0;
  p.outcome.acc_norm = i % 3 == 1;
  p.outcome.target_nll = 0.1 * i;
  p.outcome.target_tokens = 5;
  p.record = {{"example", i}, {"output", "a \xc3\xa9 \n b"}, {"log_likelihoods", {-0.1, -1.0 / 3}}};
  return p;
}

std::string text_of(const std::vector<Prediction>& predictions) {
  std::string text;
  for (const auto& p : predictions) text += json_text(to_json(p), -1);
  return text;
}

TEST(Journal, GivesBackEveryFieldBitForBit) {
  const TemporaryFolder folder;
  const std::vector<Prediction> some = {prediction(0), prediction(3)}, more = {prediction(10)};
  {
    PredictionJournal journal(folder.file("j"), "f");
    EXPECT_TRUE(journal.done().empty());
    journal.append(some);
    journal.append({});
    journal.append(more);
  }
  const PredictionJournal again(folder.file("j"), "f");
  ASSERT_EQ(again.done().size(), 3U);
  EXPECT_EQ(text_of(again.done()), text_of({some[0], some[1], more[0]}));
  const ExampleOutcome &a = again.done()[1].outcome, b = some[1].outcome;
  EXPECT_EQ(a.info, b.info);
  EXPECT_EQ(a.target_nll, b.target_nll);
  EXPECT_EQ(a.rouge_l, b.rouge_l);
  EXPECT_EQ(std::tuple(a.held_out, a.trimmed, a.exact_match, a.unfinished, a.acc, a.acc_norm),
            std::tuple(b.held_out, b.trimmed, b.exact_match, b.unfinished, b.acc, b.acc_norm));
}

TEST(Journal, LinesThatWereNotFinishedAreCutAndOthersFollowWhole) {
  const TemporaryFolder folder;
  { PredictionJournal(folder.file("j"), "f").append({prediction(1)}); }
  { std::ofstream(folder.file("j"), std::ios::app) << "[2,\"ta"; }
  {
    PredictionJournal journal(folder.file("j"), "f");
    EXPECT_EQ(journal.done().size(), 1U);
    journal.append({prediction(2)});
  }
  EXPECT_EQ(PredictionJournal(folder.file("j"), "f").done().size(), 2U);
}

TEST(Journal, OfAnotherEvaluationStartsAnew) {
  const TemporaryFolder folder;
  { PredictionJournal(folder.file("j"), "f").append({prediction(1)}); }
  EXPECT_TRUE(PredictionJournal(folder.file("j"), "g").done().empty());
  EXPECT_TRUE(PredictionJournal(folder.file("j"), "f").done().empty());
  PredictionJournal journal(folder.file("j"), "f");
  journal.remove();
  EXPECT_FALSE(std::filesystem::exists(folder.file("j")));
}

TEST(Journal, DamageIsNamedByFileAndLine) {
  const TemporaryFolder folder;
  { PredictionJournal(folder.file("j"), "f").append({prediction(1)}); }
  { std::ofstream(folder.file("j"), std::ios::app) << "[2,\"ta\"]\n"; }
  EXPECT_THAT(error_of([&] { PredictionJournal(folder.file("j"), "f"); }), HasSubstr("/j:3: not a prediction"));
}

}  // namespace
}  // namespace flanmoe
