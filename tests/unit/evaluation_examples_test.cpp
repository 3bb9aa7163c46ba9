// Which examples are measured, and who measures them.
#include <gtest/gtest.h>
#include <unistd.h>

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <map>
#include <set>

#include "base/error.hpp"
#include "evaluate/examples.hpp"

namespace flanmoe {
namespace {

class Folder {
 public:
  Folder() : path_(std::filesystem::temp_directory_path() / ("flanmoe_examples_" + std::to_string(getpid()))) {
    std::filesystem::create_directories(path_);
  }
  ~Folder() { std::filesystem::remove_all(path_); }
  std::string operator/(const std::string& name) const { return (path_ / name).string(); }

 private:
  std::filesystem::path path_;
};

Example example(const std::string& task, const std::string& variant, const std::string& split, std::int32_t id) {
  Example e;
  e.task = task;
  e.category = "c";
  e.template_name = "t";
  e.variant = variant;
  e.split = split;
  e.input.assign(std::size_t(1 + id % 5), id);
  e.target = {id, id + 1};
  return e;
}

void write_shard(const std::string& path, int first, int count, const std::string& fingerprint = "f00d") {
  ShardWriter writer(path, {fingerprint, 1000});
  for (int i = first; i < first + count; ++i) {
    writer.add(example(i % 2 == 0 ? "even" : "odd", i % 3 == 0 ? "few_shot" : "zero_shot",
                       i % 4 == 3 ? "train" : "test", 100 + i));
  }
  writer.finish();
}

TEST(EvaluationExamples, LimitTakesAKeyedSubsetOfEveryTaskAndVariant) {
  const Folder folder;
  write_shard(folder / "a.h5", 0, 60);
  write_shard(folder / "b.h5", 60, 60);
  Deck deck;
  deck.evaluate.shards = folder / "*.h5";
  const EvaluationExamples all(deck);
  EXPECT_EQ(all.size(), 90);  // three of four are test
  deck.evaluate.limit = 4;
  const EvaluationExamples some(deck);
  EXPECT_EQ(some.size(), 4 * 4);
  std::set<std::string> names;
  std::set<std::int32_t> ids;
  for (std::int64_t i = 0; i < some.size(); ++i) {
    const Example e = some.read(i);
    EXPECT_EQ(e.split, "test");
    EXPECT_EQ(some.input_length(i), std::int64_t(e.input.size()));
    names.insert(e.task + "/" + e.variant);
    ids.insert(e.target[0]);
  }
  EXPECT_EQ(names.size(), 4U);
  EXPECT_EQ(ids.size(), 16U) << "an example was taken twice";
  EXPECT_GE(*ids.rbegin(), 160) << "only the first examples were taken";
  deck.run.seed = 2;
  const EvaluationExamples others(deck);
  std::set<std::int32_t> other_ids;
  for (std::int64_t i = 0; i < others.size(); ++i) other_ids.insert(others.read(i).target[0]);
  EXPECT_NE(ids, other_ids);
}

TEST(EvaluationExamples, TaskPatternsSelect) {
  const Folder folder;
  write_shard(folder / "a.h5", 0, 24);
  Deck deck;
  deck.evaluate.shards = folder / "a.h5";
  deck.evaluate.tasks = "nothing ev*";
  EXPECT_THROW(EvaluationExamples{deck}, UsageError) << "a pattern that selects nothing is a mistake";
  deck.evaluate.tasks = "ev* eve?";
  const EvaluationExamples even(deck);
  EXPECT_GT(even.size(), 0);
  for (std::int64_t i = 0; i < even.size(); ++i) EXPECT_EQ(even.read(i).task, "even");
}

TEST(EvaluationExamples, WrongDecksSayWhatTheShardsHold) {
  const Folder folder;
  write_shard(folder / "a.h5", 0, 24);
  Deck deck;
  deck.evaluate.shards = folder / "a.h5";
  deck.evaluate.split = "validation";
  try {
    const EvaluationExamples examples(deck);
    FAIL() << "accepted a split that no example has";
  } catch (const UsageError& e) {
    EXPECT_NE(std::string(e.what()).find("validation"), std::string::npos);
    EXPECT_NE(std::string(e.what()).find("test, train"), std::string::npos) << e.what();
    EXPECT_NE(std::string(e.what()).find("even, odd"), std::string::npos) << e.what();
  }
  write_shard(folder / "b.h5", 0, 24, "beef");
  deck.evaluate.split = "test";
  deck.evaluate.shards = folder / "?.h5";
  EXPECT_THROW(EvaluationExamples{deck}, UsageError);
  deck.evaluate.shards = folder / "missing*.h5";
  try {
    const EvaluationExamples examples(deck);
    FAIL() << "accepted a pattern without files";
  } catch (const UsageError& e) {
    EXPECT_NE(std::string(e.what()).find("missing*.h5"), std::string::npos);
    EXPECT_NE(std::string(e.what()).find("evaluate.shards"), std::string::npos);
  }
}

TEST(EvaluationExamples, SubsetIsAscendingDistinctAndSpread) {
  const auto subset = keyed_subset(1000, 50, 7);
  ASSERT_EQ(subset.size(), 50U);
  EXPECT_TRUE(std::is_sorted(subset.begin(), subset.end()));
  EXPECT_EQ(std::set<std::int64_t>(subset.begin(), subset.end()).size(), 50U);
  EXPECT_LT(subset.front(), 200);
  EXPECT_GT(subset.back(), 800);
  EXPECT_EQ(keyed_subset(3, 0, 7), (std::vector<std::int64_t>{0, 1, 2}));
  EXPECT_EQ(keyed_subset(3, 9, 7), (std::vector<std::int64_t>{0, 1, 2}));
}

TEST(EvaluationExamples, RoundsCoverEveryExampleOnceOnAnyNumberOfRanks) {
  std::vector<std::int64_t> lengths;
  for (int i = 0; i < 23; ++i) lengths.push_back((i * 7) % 11);
  for (int ranks = 1; ranks <= 5; ++ranks) {
    std::multiset<std::int64_t> seen;
    std::size_t rounds = 0;
    for (int rank = 0; rank < ranks; ++rank) {
      const auto plan = plan_rounds(lengths, ranks, rank, 3);
      if (rank == 0) rounds = plan.size();
      EXPECT_EQ(plan.size(), rounds) << "ranks would call a different number of collectives";
      std::int64_t longest_before = 0;
      for (const auto& round : plan) {
        EXPECT_LE(round.size(), 3U);
        for (const auto i : round) {
          seen.insert(i);
          EXPECT_GE(lengths[std::size_t(i)], longest_before) << "not ordered by length";
          longest_before = lengths[std::size_t(i)];
        }
      }
    }
    EXPECT_EQ(seen.size(), lengths.size());
    EXPECT_EQ(std::set<std::int64_t>(seen.begin(), seen.end()).size(), lengths.size());
  }
}

TEST(EvaluationExamples, IdsNameAnExampleWhateverElseIsMeasured) {
  const Folder folder;
  write_shard(folder / "a.h5", 0, 40);
  write_shard(folder / "b.h5", 0, 40);
  Deck deck;
  deck.evaluate.shards = folder / "*.h5";
  std::map<std::pair<std::string, std::int64_t>, std::uint64_t> ids;
  std::set<std::uint64_t> different;
  const EvaluationExamples all(deck);
  for (std::int64_t i = 0; i < all.size(); ++i) {
    ids[{all.path(i), all.index_in_shard(i)}] = all.id(i);
    different.insert(all.id(i));
  }
  EXPECT_EQ(different.size(), std::size_t(all.size()));
  deck.evaluate.limit = 3;
  deck.evaluate.shards = folder / "b.h5";
  const EvaluationExamples some(deck);
  for (std::int64_t i = 0; i < some.size(); ++i) {
    EXPECT_EQ(some.id(i), ids.at({some.path(i), some.index_in_shard(i)}));
  }
}

TEST(EvaluationExamples, ShardsMustAgreeOnHowATaskIsMeasured) {
  const Folder folder;
  const auto write = [&](const char* name, const TaskInfo& info) {
    ShardWriter writer(folder / name, {"f00d", 1000});
    writer.describe_task("even", info);
    writer.add(example("even", "zero_shot", "test", 100));
    writer.finish();
  };
  const TaskInfo snarks = published_task("bbh", "snarks").value();
  write("a.h5", snarks);
  write("b.h5", snarks);
  Deck deck;
  deck.evaluate.shards = folder / "*.h5";
  EXPECT_EQ(EvaluationExamples(deck).task_info(1), snarks);
  write("c.h5", TaskInfo());
  try {
    const EvaluationExamples examples(deck);
    FAIL() << "taken";
  } catch (const UsageError& error) {
    const std::string text = error.what();
    EXPECT_NE(text.find("a.h5"), std::string::npos) << text;
    EXPECT_NE(text.find("c.h5 say differently how task even is measured"), std::string::npos) << text;
  }
}

}  // namespace
}  // namespace flanmoe
