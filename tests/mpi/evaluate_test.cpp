// The whole evaluate stage on a tiny model: from checkpoint and shards to the files of the run folder.
#include "evaluate/evaluate.hpp"

#include <gtest/gtest.h>
#include <omp.h>

#include <cmath>

#include "base/log.hpp"
#include "checkpoint/checkpoint.hpp"
#include "checkpoint_fixture.hpp"
#include "data/tokenizer.hpp"
#include "evaluate/files.hpp"
#include "model_fixture.hpp"
#include "optimizer_fixture.hpp"

namespace flanmoe {
namespace {

namespace fs = std::filesystem;

/// A folder with a tokenizer, a shard of examples and a checkpoint of an untrained model, made once by all ranks.
class Bench {
 public:
  explicit Bench(const Communicator& world) : world_(world), folder_(world) {
    omp_set_num_threads(1);  // four ranks that spin on two cores would take minutes
    configure_log(1, "");    // no tables between the results of tests
    deck = testing::tiny_deck(true);
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
  test::TemporaryFolder folder_;
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
  Bench bench(world);
  const std::string alone = bench.evaluate(self, 1, fmt::format("alone_{}", world.rank()), 1);
  for (int degree = 1; degree <= world.size(); ++degree) {
    if (world.size() % degree != 0) continue;
    for (const std::int64_t rows : {2, 32}) {
      const std::string run = bench.evaluate(world, degree, fmt::format("together_{}_{}", degree, rows), rows);
      if (world.rank() == 0) expect_same_predictions(alone, run);
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
  bench.deck.evaluate.limit = 2;
  bench.evaluate(world, 1, "run");
  EXPECT_FALSE(marked()) << "another deck was taken for the same";
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
