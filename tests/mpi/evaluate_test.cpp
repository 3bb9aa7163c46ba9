// The whole evaluate stage on a tiny model: from checkpoint and shards to the files of the run folder.
#include "evaluate/evaluate.hpp"

#include <gtest/gtest.h>
#include <omp.h>

#include <algorithm>
#include <cmath>

#include "base/log.hpp"
#include "checkpoint/checkpoint.hpp"
#include "checkpoint_fixture.hpp"
#include "data/tokenizer.hpp"
#include "evaluate/files.hpp"
#include "evaluate/predict.hpp"
#include "model_fixture.hpp"
#include "optimizer_fixture.hpp"
#include "tensor/philox.hpp"

namespace flanmoe {
namespace {

namespace fs = std::filesystem;

/// A folder with a tokenizer, a shard of examples and a checkpoint of an untrained model, made once by all ranks.
class Bench {
 public:
  explicit Bench(const Communicator& world, const Deck& model = testing::tiny_deck(true))
      : deck(model), world_(world), folder_(world) {
    omp_set_num_threads(1);  // four ranks that spin on two cores would take minutes
    configure_log(1, "");    // no tables between the results of tests
    deck.model.vocabulary = 320;
    deck.moe.experts = 12;  // divides by 1, 2, 3 and 4
    deck.run.stage = "evaluate";
    deck.run.init_from = folder_.path() + "/trained";
    deck.data.tokenizer = folder_.path() + "/tokenizer.model";
    deck.data.exclude_tasks = "hel?";
    deck.evaluate.shards = folder_.path() + "/*.h5";
    deck.evaluate.max_new_tokens = 5;
    if (world.rank() == 0) write_files();
    world.barrier();
    test::Rig rig(world, 1, test::rig_deck("adamw"), DType::f32, "cpu", model_parameters(deck.model, deck.moe));
    KernelContext context{.scratch = &rig.scratch};
    rig.optimizer.initialize(context, 5);
    const std::string tokenizer = Tokenizer(deck.data.tokenizer).identity().fingerprint;
    write_checkpoint(deck.run.init_from, {7, 1234, "", tokenizer}, rig.store, rig.optimizer, world, 1);
  }

  /// Evaluates on the ranks of `group` into RUN/name.
  std::string evaluate(const Communicator& group, int degree, const std::string& name, std::int64_t rows = 3) {
    deck.run.dir = folder_.path() + "/" + name;
    deck.parallel.expert = degree;
    deck.evaluate.batch_rows = rows;
    const ProcessGrid grid(group.size(), group.rank(), degree);
    run_evaluation(deck, grid, Communicators::make(group, grid));
    world_.barrier();
    return deck.run.dir;
  }

  /// Questions whose right choice is drawn by lot, as the benchmark "qa"; the deck measures them by ranking.
  void write_questions(int count) {
    deck.evaluate.shards = folder_.path() + "/questions.shard";
    deck.evaluate.generate = false;
    if (world_.rank() == 0) {
      const Tokenizer tokenizer(deck.data.tokenizer);
      ShardWriter writer(deck.evaluate.shards, tokenizer.identity());
      writer.describe_task("arc_easy", published_task("qa", "arc_easy").value());
      const RandomKey key{.seed = 3};
      for (int i = 0; i < count; ++i) {
        Example e;
        e.task = std::string("arc_easy");
        e.variant = "zero_shot";
        e.split = "test";
        const auto token = [&](std::uint32_t place) {
          return std::int32_t(3 + key.below(180, std::uint64_t(i), place));
        };
        for (std::uint32_t t = 0; t < 8; ++t) e.input.push_back(token(t));
        for (std::uint32_t c = 0; c < 4; ++c) {
          e.choices.push_back({token(20 + 2 * c), token(21 + 2 * c)});
          e.choice_bytes.push_back(4);
        }
        e.gold = std::int32_t(key.below(4, std::uint64_t(i), 40));
        e.target = e.choices[std::size_t(e.gold)];
        writer.add(e);
      }
      writer.finish();
    }
    world_.barrier();
  }

  Deck deck;

 private:
  void write_files() const {
    std::vector<std::string> sentences;
    const char* starts[] = {"red", "green", "loud", "soft", "quick", "bright", "dull", "heavy", "light", "warm"};
    const char* things[] = {"stone", "river", "window", "table", "garden", "letter", "winter", "summer", "mountain"};
    const char* verbs[] = {"moves", "stands", "falls", "rises", "was sold", "turns", "is old"};
    for (int i = 0; i < 3000; ++i) {
      sentences.push_back(fmt::format("the {}er {}s {} on day {} near {}", starts[i % 10], things[i % 9], verbs[i % 7],
                                      i * 37 % 1000, i % 91));
    }
    std::size_t at = 0;
    const auto next = [&](std::string& sentence) {
      if (at == sentences.size()) return false;
      sentence = sentences[at++];
      return true;
    };
    train_tokenizer(next, {.vocabulary = 290}, deck.data.tokenizer);
    const Tokenizer tokenizer(deck.data.tokenizer);
    ShardWriter writer(folder_.path() + "/examples.h5", tokenizer.identity());
    for (int i = 0; i < 19; ++i) {
      Example e;
      e.task = i % 2 == 0 ? "held" : "seen";
      e.category = std::string("c");
      e.template_name = std::string("t");
      e.variant = i % 3 == 0 ? "few_shot" : "zero_shot";
      e.split = i == 18 ? "train" : "test";
      e.input = tokenizer.encode(sentences[std::size_t(i * i)]);
      e.target = tokenizer.encode(std::to_string(i));
      for (int c = 0; c < 4 && i % 4 != 1; ++c) {
        e.choices.push_back(tokenizer.encode(std::to_string(i + c * 10)));
        e.choice_bytes.push_back(std::int32_t(std::to_string(i + c * 10).size()));
        e.gold = 0;
      }
      writer.add(e);
    }
    writer.finish();
  }
  const Communicator& world_;
  test::SharedFolder folder_;
};

void expect_same_predictions(const std::string& expected_run, const std::string& run) {
  const auto expected = read_json_lines(expected_run + "/predictions.jsonl");
  const auto got = read_json_lines(run + "/predictions.jsonl");
  ASSERT_EQ(expected.size(), got.size());
  for (std::size_t i = 0; i < got.size(); ++i) {
    for (const auto& [key, value] : expected[i].items()) {
      const Json& other = got[i].at(key);
      if (key == "log_likelihoods") {
        for (std::size_t c = 0; c < value.size(); ++c) {
          EXPECT_NEAR(value[c].get<double>(), other[c].get<double>(), 1e-4) << i;
        }
      } else if (value.is_number_float()) {
        EXPECT_NEAR(value.get<double>(), other.get<double>(), 1e-4) << i << " " << key;
      } else {
        EXPECT_EQ(value, other) << i << " " << key;
      }
    }
  }
}

TEST(Evaluate, ResultsDoNotDependOnRanksExpertsOrBatches) {
  const Communicator world = Communicator::world();
  const Communicator self = world.split(world.rank(), 0, "alone");
  for (const Deck& model : {testing::tiny_deck(true), testing::tiny_palm(true, "prefix")}) {
    Bench bench(world, model);
    const std::string alone = bench.evaluate(self, 1, fmt::format("alone_{}", world.rank()), 1);
    for (int degree = 1; degree <= world.size(); ++degree) {
      if (world.size() % degree != 0) continue;
      for (const std::int64_t rows : {2, 32}) {
        const std::string run = bench.evaluate(world, degree, fmt::format("together_{}_{}", degree, rows), rows);
        if (world.rank() == 0) expect_same_predictions(alone, run);
      }
    }
  }
}

TEST(Evaluate, FilesHoldTheScoresOfThePredictions) {
  const Communicator world = Communicator::world();
  Bench bench(world);
  const std::string run = bench.evaluate(world, world.size(), "run");
  const Json evaluation = read_json_file(run + "/evaluation.json");
  EXPECT_EQ(evaluation.at("step"), 7);
  EXPECT_EQ(evaluation.at("tokens_seen"), 1234);
  EXPECT_EQ(evaluation.at("examples"), 18);
  EXPECT_NE(read_text_file(run + "/evaluation.deck").find("max_new_tokens = 5"), std::string::npos);
  std::map<std::string, std::array<double, 4>> counts;  // n, exact, acc, nll
  double tokens = 0;
  for (const Json& p : read_json_lines(run + "/predictions.jsonl")) {
    auto& c = counts[p.at("task").get<std::string>() + " " + p.at("variant").get<std::string>()];
    c[0] += 1;
    c[1] += p.at("exact_match").get<bool>();
    c[2] += p.value("acc", false);
    c[3] += p.at("target_nll").get<double>();
    tokens += p.at("target_tokens").get<double>();
    EXPECT_EQ(p.at("held_out"), p.at("task") == "held");
    EXPECT_TRUE(std::isfinite(p.at("target_nll").get<double>()));
  }
  EXPECT_EQ(counts.size(), 4U);
  double all_tokens = 0;
  for (const Json& row : evaluation.at("tasks")) {
    const auto& c = counts.at(row.at("task").get<std::string>() + " " + row.at("variant").get<std::string>());
    EXPECT_EQ(row.at("n").get<double>(), c[0]);
    EXPECT_DOUBLE_EQ(row.at("exact_match").get<double>(), c[1] / c[0]);
    EXPECT_DOUBLE_EQ(row.at("acc").get<double>() * row.at("ranked").get<double>(), c[2]);
    EXPECT_NEAR(row.at("nll_per_token").get<double>() * row.at("target_tokens").get<double>(), c[3], 1e-9);
    EXPECT_EQ(row.at("chance"), 0.25);
    all_tokens += row.at("target_tokens").get<double>();
  }
  EXPECT_EQ(all_tokens, tokens);
}

TEST(Evaluate, ASecondRunOfTheSameInputsIsSkippedAndOthersAreNot) {
  const Communicator world = Communicator::world();
  Bench bench(world);
  const std::string run = bench.evaluate(world, 1, "run");
  const auto mark = [&] {
    world.barrier();  // all have seen what it was before
    if (world.rank() == 0) {
      Json old = read_json_file(run + "/evaluation.json");
      old["seconds"] = -1;
      publish_text_file(run + "/evaluation.json", json_text(old, 2));
    }
    world.barrier();
  };
  const auto marked = [&] { return read_json_file(run + "/evaluation.json").at("seconds") == -1; };
  mark();
  bench.evaluate(world, 1, "run");
  EXPECT_TRUE(marked()) << "the same evaluation was done twice";
  bench.deck.plan.machine = "another.json";
  bench.deck.plan.ranks = 7;
  bench.evaluate(world, 1, "run");
  EXPECT_TRUE(marked()) << "what is planned does not belong to a measurement";
  bench.deck.evaluate.limit = 2;
  bench.evaluate(world, 1, "run");
  EXPECT_FALSE(marked()) << "another deck was taken for the same";
  mark();
  bench.deck.batch.input_length -= 1;  // prompts may lose more of their beginning
  bench.evaluate(world, 1, "run");
  EXPECT_FALSE(marked()) << "other prompts were taken for the same";
}

/// Two characters of some output that no single token writes; empty when there are none.
std::string text_across_tokens(const std::vector<Json>& predictions, const Tokenizer& tokenizer) {
  const auto in_one_token = [&](const std::string& text) {
    for (std::int32_t id = 0; id < tokenizer.vocabulary(); ++id) {
      if (tokenizer.decode(TokenIds{id}).find(text) != std::string::npos) return true;
    }
    return false;
  };
  for (const Json& p : predictions) {
    const auto output = p.at("output").get<std::string>();
    for (std::size_t i = 0; i + 2 <= output.size(); ++i) {
      const std::string text = output.substr(i, 2);
      const bool plain =
          std::all_of(text.begin(), text.end(), [](char c) { return c > ' ' && c <= '~' && c != '\\' && c != '|'; });
      if (plain && !in_one_token(text)) return text;
    }
  }
  return "";
}

TEST(Evaluate, StopStringsEndTextsAcrossTokens) {
  const Communicator world = Communicator::world();
  Bench bench(world);
  bench.deck.evaluate.max_new_tokens = 12;
  const auto open = read_json_lines(bench.evaluate(world, 1, "open") + "/predictions.jsonl");
  bench.deck.evaluate.stop = text_across_tokens(open, Tokenizer(bench.deck.data.tokenizer));
  ASSERT_FALSE(bench.deck.evaluate.stop.empty());
  const auto stopped = read_json_lines(bench.evaluate(world, 1, "stopped") + "/predictions.jsonl");
  ASSERT_EQ(open.size(), stopped.size());
  int cut = 0;
  for (std::size_t i = 0; i < open.size(); ++i) {
    const auto text = open[i].at("output").get<std::string>();
    const std::string expected = cut_at_stop(text, {bench.deck.evaluate.stop});
    EXPECT_EQ(stopped[i].at("output"), expected);
    cut += expected != text;
    EXPECT_EQ(stopped[i].at("unfinished"), expected == text && open[i].at("unfinished").get<bool>());
  }
  EXPECT_GT(cut, 0);
}

TEST(Evaluate, ARandomModelScoresChance) {
  const Communicator world = Communicator::world();
  Bench bench(world);
  constexpr int count = 400;
  bench.write_questions(count);
  const Json evaluation = read_json_file(bench.evaluate(world, 1, "questions", 16) + "/evaluation.json");
  const Json& qa = evaluation.at("benchmarks").at(0);
  const double error = std::sqrt(0.25 * 0.75 / count);
  EXPECT_EQ(qa.at("benchmark"), "qa");
  EXPECT_EQ(qa.at("n"), count);
  EXPECT_EQ(qa.at("chance"), 0.25);
  EXPECT_NEAR(qa.at("score").get<double>(), 0.25, 3 * error);
  EXPECT_NEAR(qa.at("normalized_score").get<double>(), 0, 3 * 100 * error / 0.75);
  EXPECT_GT(qa.at("score").get<double>(), 0.0);
}

TEST(Evaluate, WrongInputsAreUsageErrorsOnEveryRank) {
  const Communicator world = Communicator::world();
  Bench bench(world);
  const Deck good = bench.deck;
  const auto message = [&] {
    try {
      bench.evaluate(world, 1, "run");
    } catch (const UsageError& e) {
      return std::string(e.what());
    }
    return std::string("no usage error");
  };
  bench.deck.run.init_from = good.run.init_from + "/elsewhere";
  EXPECT_NE(message().find("holds no published checkpoint"), std::string::npos);
  bench.deck = good;
  bench.deck.model.vocabulary = 200;
  EXPECT_NE(message().find("model.vocabulary is 200"), std::string::npos);
  bench.deck = good;
  bench.deck.data.tokenizer = "";
  EXPECT_NE(message().find("data.tokenizer"), std::string::npos);
}

}  // namespace
}  // namespace flanmoe
