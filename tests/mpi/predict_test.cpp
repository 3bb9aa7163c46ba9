// What is measured on an example depends on the example only: not on ranks, batches or neighbours.
#include "evaluate/predict.hpp"

#include <gtest/gtest.h>

#include "evaluate/examples.hpp"
#include "tensor/philox.hpp"

namespace flanmoe {
namespace {

constexpr int examples = 37;
constexpr std::int64_t row = 12;

/// Examples made by number, so that every rank makes the same ones. Token i reads "w<i>".
Example example(int i) {
  Example e;
  e.task = i % 3 == 0 ? "held" : "seen";
  e.category = "c";
  e.template_name = "t";
  e.variant = i % 5 == 0 ? "few_shot" : "zero_shot";
  e.input.assign(std::size_t(1 + (i * 7) % 17), std::int32_t(100 + i));
  e.input.back() = 90;  // the ends of an input differ
  e.target = {std::int32_t(3 + i % 4)};
  if (i % 2 == 0) {
    for (std::int32_t c = 0; c < 4; ++c) {
      e.choices.push_back({3 + c});
      e.choice_bytes.push_back(2 + c);
    }
    e.gold = i % 4;
  }
  return e;
}

std::string decode(const TokenIds& ids) {
  std::string text;
  for (const auto id : ids) text += fmt::format("{}w{}", text.empty() ? "" : " ", id);
  return text;
}

std::uint64_t hash_of(const TokenIds& ids, std::uint64_t seed) {
  std::string bytes = std::to_string(seed);
  for (const auto id : ids) bytes += fmt::format(",{}", id);
  return hash_name(bytes);
}

/// Stands for a model: pure functions of each input. Every call is collective, as a model with experts would be.
Predictor fake_model(const Communicator& world, int* calls) {
  return {[&world, calls](const std::vector<GenerateRequest>& requests) {
            world.barrier();
            ++*calls;
            std::vector<Generated> outputs;
            for (const auto& request : requests) {
              EXPECT_LT(std::int64_t(request.input.size()), row);
              outputs.push_back({{std::int32_t(3 + hash_of(request.input, 1) % 4)}, true});
            }
            return outputs;
          },
          [&world, calls](const std::vector<ScoreRequest>& requests) {
            world.barrier();
            ++*calls;
            std::vector<std::vector<double>> scores;
            for (const auto& request : requests) {
              auto& row_scores = scores.emplace_back();
              for (const auto& target : request.targets) {
                row_scores.push_back(-1e-3 * double(hash_of(request.input, hash_of(target, 2)) % 100003) / 3.0);
              }
            }
            return scores;
          }};
}

PredictionTask make_task(int ranks, int rank, std::int64_t rows) {
  std::vector<std::int64_t> lengths;
  for (int i = 0; i < examples; ++i) lengths.push_back(std::int64_t(example(i).input.size()));
  PredictionTask task;
  task.total = examples;
  task.longest_input = row;
  task.held_out = {"he*"};
  task.decode = decode;
  for (const auto& round : plan_rounds(lengths, ranks, rank, rows)) {
    task.rounds.push_back(std::int64_t(round.size()));
    for (const auto i : round) {
      task.ordinals.push_back(i);
      task.ids.push_back(std::uint64_t(i));
      task.infos.emplace_back();
      task.examples.push_back(example(int(i)));
    }
  }
  return task;
}

std::string lines_of(const std::vector<Prediction>& predictions) {
  std::string text;
  for (const auto& p : predictions) text += json_text(p.record, -1) + "\n";
  return text;
}

/// All examples in order on one rank, one at a time.
std::vector<Prediction> alone(const Communicator& world, const EvaluateDeck& deck) {
  const Communicator self = world.split(world.rank(), 0, "self");
  int calls = 0;
  return predict(make_task(1, 0, 1), deck, fake_model(self, &calls), self).value();
}

TEST(Predict, ResultsDoNotDependOnRanksOrBatches) {
  const auto world = Communicator::world();
  EvaluateDeck deck;
  deck.max_new_tokens = 4;
  const auto expected = alone(world, deck);
  ASSERT_EQ(expected.size(), std::size_t(examples));
  for (const std::int64_t rows : {1, 3, 8, 64}) {
    int calls = 0;
    const auto got =
        predict(make_task(world.size(), world.rank(), rows), deck, fake_model(world, &calls), world).value();
    EXPECT_EQ(world.all_reduce(std::int32_t(calls), ReduceOp::min),
              world.all_reduce(std::int32_t(calls), ReduceOp::max));
    if (world.rank() != 0) {
      EXPECT_TRUE(got.empty());
      continue;
    }
    EXPECT_EQ(lines_of(got), lines_of(expected)) << rows << " rows";
    ASSERT_EQ(got.size(), expected.size());
    std::vector<ExampleOutcome> a, b;
    for (std::size_t i = 0; i < got.size(); ++i) a.push_back(got[i].outcome), b.push_back(expected[i].outcome);
    const auto x = score_tasks(a), y = score_tasks(b);
    ASSERT_EQ(x.size(), 4U);
    for (std::size_t i = 0; i < x.size(); ++i) {
      EXPECT_EQ(x[i].exact_match->value, y[i].exact_match->value);
      EXPECT_EQ(x[i].acc->value, y[i].acc->value);
      EXPECT_EQ(x[i].target_nll, y[i].target_nll);
    }
  }
}

TEST(Predict, RecordsEqualTheModelsAnswers) {
  const auto world = Communicator::world();
  EvaluateDeck deck;
  deck.max_new_tokens = 4;
  const auto predictions = alone(world, deck);
  for (int i = 0; i < examples; ++i) {
    const Example e = example(i);
    const Prediction& p = predictions[std::size_t(i)];
    TokenIds input = e.input;
    const bool trimmed = std::int64_t(input.size()) + 1 > row;
    if (trimmed) input.erase(input.begin(), input.end() - (row - 1));
    const TokenIds output = {std::int32_t(3 + hash_of(input, 1) % 4)};
    EXPECT_EQ(p.ordinal, i);
    EXPECT_EQ(p.outcome.trimmed, trimmed);
    EXPECT_EQ(p.outcome.held_out, i % 3 == 0);
    EXPECT_EQ(p.outcome.exact_match, output == e.target);
    EXPECT_EQ(p.record.at("output"), decode(output));
    EXPECT_EQ(p.record.at("prompt"), decode(e.input));
    EXPECT_FALSE(p.outcome.unfinished);
    EXPECT_EQ(p.outcome.target_tokens, 2);
    const double target_score = -1e-3 * double(hash_of(input, hash_of(e.target, 2)) % 100003) / 3.0;
    EXPECT_EQ(p.outcome.target_nll, -target_score);
    if (e.choices.empty()) {
      EXPECT_EQ(p.outcome.choices, 0);
      EXPECT_FALSE(p.record.contains("acc"));
      continue;
    }
    std::size_t best = 0;
    const auto scores = p.record.at("log_likelihoods").get<std::vector<double>>();
    ASSERT_EQ(scores.size(), 4U);
    for (std::size_t c = 1; c < 4; ++c) best = scores[c] > scores[best] ? c : best;
    EXPECT_EQ(p.outcome.acc, std::int32_t(best) == e.gold);
  }
}

TEST(Predict, SwitchesLeaveOutWhatTheySay) {
  const auto world = Communicator::world();
  EvaluateDeck deck;
  deck.generate = false;
  deck.rank = false;
  int calls = 0;
  const auto got = predict(make_task(world.size(), world.rank(), 4), deck, fake_model(world, &calls), world).value();
  for (const auto& p : got) {
    EXPECT_FALSE(p.outcome.generated);
    EXPECT_FALSE(p.record.contains("output"));
    EXPECT_EQ(p.outcome.choices, 0);
    EXPECT_GT(p.outcome.target_tokens, 0);
  }
}

TEST(Predict, WhenOneRankIsAskedToStopAllEndAfterTheRoundAndKeepIt) {
  const auto world = Communicator::world();
  RunDeck run;
  if (world.rank() == world.size() - 1) run.stop_after_minutes = 1e-9;
  const StopRequest stop(run);
  const PredictionTask task = make_task(world.size(), world.rank(), 2);
  ASSERT_GT(task.rounds.size(), 1U);
  int calls = 0;
  std::size_t kept = 0;

  const auto got = predict(
      task, EvaluateDeck{}, fake_model(world, &calls), world,
      [&](const std::vector<Prediction>& round) { kept += round.size(); }, &stop);

  EXPECT_FALSE(got.has_value());
  const auto first_round = world.all_reduce(task.rounds.front(), ReduceOp::sum);
  EXPECT_EQ(std::int64_t(kept), world.rank() == 0 ? first_round : 0);
}

TEST(Predict, AnExampleWhoseRightChoiceIsNoneIsNamedOnEveryRank) {
  const auto world = Communicator::world();
  PredictionTask task = make_task(world.size(), world.rank(), 4);
  if (world.rank() == world.size() - 1) {
    Example& e = task.examples.back();
    e.choices = {{3}}, e.choice_bytes = {2}, e.gold = 1;
    e.task = std::string("broken");
  }
  int calls = 0;
  try {
    predict(task, EvaluateDeck{}, fake_model(world, &calls), world);
    ADD_FAILURE() << "rank " << world.rank() << " went on";
  } catch (const Error& e) {
    EXPECT_NE(std::string(e.what()).find("broken"), std::string::npos) << e.what();
  }
  EXPECT_EQ(calls, 0);
}

TEST(Predict, TheNearestOfSeveralRightAnswersCounts) {
  const auto world = Communicator::world();
  const Communicator self = world.split(world.rank(), 0, "self");
  PredictionTask task = make_task(1, 0, 4);
  for (std::size_t i = 0; i < task.examples.size(); ++i) {
    task.infos[i] = published_task("niv2", "task").value();
    task.examples[i].answer = "something else";
    // The fake model writes one of w3 .. w6.
    task.examples[i].more_answers = {"w3 and w4", "w5", "w6 w6 w6"};
  }
  int calls = 0;
  EvaluateDeck deck;
  const auto predictions = predict(task, deck, fake_model(self, &calls), self).value();
  for (const auto& p : predictions) {
    const auto output = p.record.at("output").get<std::string>();
    const double expected = output == "w5" ? 1.0 : 0.5;  // one common word of 1 and 3
    EXPECT_DOUBLE_EQ(p.outcome.rouge_l, expected) << output;
    EXPECT_EQ(p.outcome.exact_match, output == "w5");
    EXPECT_EQ(p.record.at("golds").size(), 4U);
    EXPECT_EQ(p.record.at("benchmark"), "niv2");
  }
  EXPECT_GT(calls, 0);
}

TEST(Predict, TextsAreCutAtTheFirstStopString) {
  EXPECT_EQ(cut_at_stop("the cat. Q: and", {"Q:", "."}), "the cat");
  EXPECT_EQ(cut_at_stop("the cat", {"Q:", "dog"}), "the cat");
  EXPECT_EQ(cut_at_stop("Q: a", {"Q:"}), "");
  EXPECT_EQ(cut_at_stop("a\n\nb", {"\n\n"}), "a");
  EXPECT_EQ(cut_at_stop("abc", {}), "abc");
}

TEST(Predict, LimitsHoldTheLongestOfEverything) {
  PredictionTask task;
  task.longest_input = row;
  Example e = example(0);
  e.input.assign(30, 5);
  e.target.assign(9, 5);
  e.choices.assign(40, {3});
  task.examples = {example(1), e};
  EvaluateDeck deck;
  deck.batch_rows = 8;
  deck.max_new_tokens = 4;
  const BatchLimits limits = prediction_limits(task, deck);
  EXPECT_EQ(limits.longest_input, row);
  EXPECT_EQ(limits.longest_target, 10);
  EXPECT_EQ(limits.rows, 41);
  EXPECT_EQ(limits.encoder_tokens, 8 * row);
  EXPECT_EQ(limits.decoder_tokens, 410);
  deck.beams = 7;  // more rows to decode, no more to score
  EXPECT_EQ(prediction_limits(task, deck).rows, 56);
  EXPECT_EQ(prediction_limits(task, deck).decoder_tokens, 410);
  deck.beams = 100;
  EXPECT_EQ(prediction_limits(task, deck).decoder_tokens, 800);
}

}  // namespace
}  // namespace flanmoe
