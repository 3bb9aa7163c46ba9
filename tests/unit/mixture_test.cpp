#include "data/mixture.hpp"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <fstream>
#include <set>

#include "data/submixtures.hpp"
#include "data_fixture.hpp"

namespace flanmoe {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;

std::vector<MixtureTask> tasks_with_rates(const std::vector<double>& rates) {
  std::vector<MixtureTask> tasks(rates.size());
  for (std::size_t t = 0; t < rates.size(); ++t) tasks[t].rate = rates[t];
  return tasks;
}

MixtureTask task_of(std::int64_t items, double rate) {
  MixtureTask task;
  task.name = "task";
  task.items = items;
  task.rate = rate;
  return task;
}

/// Three tasks of 400, 100 and 25 examples over two shards, and one test example.
class MixtureOfShards : public testing::Test {
 protected:
  void SetUp() override {
    std::vector<Example> first, second;
    const auto add = [](std::vector<Example>& to, const std::string& task, int count, const std::string& split) {
      for (int i = 0; i < count; ++i) {
        Example e;
        e.input = {i};
        e.target = {i};
        e.task = task;
        e.split = split;
        to.push_back(e);
      }
    };
    add(first, "large", 300, "train");
    add(first, "only_test", 1, "test");
    add(second, "middle", 100, "train");
    add(second, "large", 100, "train");
    add(second, "small", 25, "train");
    write_shard(folder_.file("a.h5"), first);
    write_shard(folder_.file("b.h5"), second);
    shards_.emplace_back(folder_.file("a.h5"));
    shards_.emplace_back(folder_.file("b.h5"));
  }
  std::vector<MixtureTask> mixture(const DataDeck& deck) const {
    std::vector<MixtureTask> tasks = select_tasks(deck, shards_);
    set_rates(deck, 1, tasks);
    return tasks;
  }
  static std::vector<double> rates(const std::vector<MixtureTask>& tasks) {
    std::vector<double> all;
    for (const MixtureTask& task : tasks) all.push_back(task.rate);
    return all;
  }
  static std::vector<std::string> names(const std::vector<MixtureTask>& tasks) {
    std::vector<std::string> all;
    for (const MixtureTask& task : tasks) all.push_back(task.name);
    return all;
  }

  TemporaryFolder folder_;
  std::vector<ShardReader> shards_;
};

TEST_F(MixtureOfShards, RatesFollowCapTemperatureAndWeights) {
  DataDeck deck;
  EXPECT_THAT(names(mixture(deck)), ElementsAre("large", "middle", "small"));
  EXPECT_THAT(rates(mixture(deck)), ElementsAre(400.0 / 525, 100.0 / 525, 25.0 / 525));
  deck.cap = 50;
  EXPECT_THAT(rates(mixture(deck)), ElementsAre(0.4, 0.4, 0.2));
  deck.cap = 0;
  deck.temperature = 2;
  EXPECT_THAT(rates(mixture(deck)), ElementsAre(20.0 / 35, 10.0 / 35, 5.0 / 35));
  deck.weights = "l*=0.5 *l*=2 small=0";
  EXPECT_THAT(rates(mixture(deck)), ElementsAre(20.0 / 40, 20.0 / 40, 0.0));
}

TEST_F(MixtureOfShards, ExcludedTasksAndOtherSplitsAreAbsent) {
  DataDeck deck;
  deck.tasks = "*";
  deck.exclude_tasks = "mid* small";
  EXPECT_THAT(names(mixture(deck)), ElementsAre("large"));
  EXPECT_EQ(mixture(deck)[0].items, 400);
  deck.tasks = "s* middle";
  deck.exclude_tasks = "middle";
  EXPECT_THAT(names(mixture(deck)), ElementsAre("small"));
  deck = DataDeck();
  deck.split = "test";
  EXPECT_THAT(names(mixture(deck)), ElementsAre("only_test"));
}

TEST_F(MixtureOfShards, WrongSelectionsAreUsageErrors) {
  const auto message = [&](auto&& change) {
    DataDeck deck;
    change(deck);
    EXPECT_THROW(mixture(deck), UsageError);
    return error_of([&] { mixture(deck); });
  };
  EXPECT_THAT(message([](DataDeck& d) { d.tasks = "larg"; }), HasSubstr("data.tasks: 'larg' matches none"));
  EXPECT_THAT(message([](DataDeck& d) { d.exclude_tasks = "smal"; }), HasSubstr("nearest: small"));
  EXPECT_THAT(message([](DataDeck& d) { d.weights = "medium=2"; }), HasSubstr("data.weights: 'medium'"));
  EXPECT_THAT(message([](DataDeck& d) { d.weights = "small"; }), HasSubstr("'small' is not of the form"));
  EXPECT_THAT(message([](DataDeck& d) { d.weights = "small=1x"; }), HasSubstr("'small=1x' is not of the form"));
  EXPECT_THAT(message([](DataDeck& d) { d.weights = "small=-1"; }), HasSubstr("'small=-1' is not of the form"));
  EXPECT_THAT(message([](DataDeck& d) { d.weights = "*=0"; }), HasSubstr("no task with a rate"));
  EXPECT_THAT(message([](DataDeck& d) { d.split = "valid"; }), HasSubstr("split 'valid'"));
  EXPECT_THAT(message([](DataDeck& d) { d.exclude_tasks = "*"; }), HasSubstr("leaves no task"));
}

TEST_F(MixtureOfShards, SubmixturesShareTheDraws) {
  DataDeck deck;
  deck.submixtures = "a=3:200:4:large,mid* b=1:0:0:small,absent";
  std::vector<MixtureTask> tasks = select_tasks(deck, shards_);
  const auto notes = set_rates(deck, 1, tasks);
  // a: 200 of large (capped) and 100 of middle share 3/4; b: small alone has 1/4.
  EXPECT_THAT(rates(tasks), testing::Pointwise(testing::DoubleEq(), {0.75 * 200 / 300, 0.75 * 100 / 300, 0.25}));
  EXPECT_THAT(notes, ElementsAre("sub-mixture a: 75% of the weight, 2 of 4 tasks",
                                 "sub-mixture b: 25% of the weight, 1 tasks; no task matches absent",
                                 "the tasks at hand cover 50.0% of the mixture's weight"));
}

TEST_F(MixtureOfShards, ATaskMayBeInTwoSubmixtures) {
  DataDeck deck;
  deck.submixtures = "a=1:0:0:large,middle b=1:0:0:middle,small c=2:0:5:none";
  deck.weights = "large=0.5";
  std::vector<MixtureTask> tasks = select_tasks(deck, shards_);
  const auto notes = set_rates(deck, 1, tasks);
  // c has no task: its share falls to the others.
  const double a = 200 + 100, b = 100 + 25;
  EXPECT_THAT(rates(tasks),
              testing::Pointwise(testing::DoubleEq(), {0.5 * 200 / a, 0.5 * 100 / a + 0.5 * 100 / b, 0.5 * 25 / b}));
  EXPECT_EQ(notes.back(), "the tasks at hand cover 50.0% of the mixture's weight");
}

TEST_F(MixtureOfShards, WrongSubmixturesAndHeldOutTasksAreRefused) {
  const auto message = [&](auto&& change) {
    DataDeck deck;
    change(deck);
    EXPECT_THROW(mixture(deck), UsageError);
    return error_of([&] { mixture(deck); });
  };
  for (const char* wrong :
       {"a", "a=1:0:0", "=1:0:0:x", "a=0:0:0:x", "a=1:-1:0:x", "a=1:0:0:x,", "a=1:0:0:", "a=x:0:0:*"}) {
    EXPECT_THAT(message([&](DataDeck& d) { d.submixtures = wrong; }),
                HasSubstr("expected NAME=SHARE:CAP:TASKS:PATTERN"))
        << wrong;
  }
  EXPECT_THAT(message([](DataDeck& d) { d.submixtures = "a=1:0:0:* a=1:0:0:*"; }),
              HasSubstr("a second sub-mixture 'a'"));
  EXPECT_THAT(message([](DataDeck& d) { d.submixtures = "a=1:0:0:large"; }), HasSubstr("task 'middle' is in none"));
  const std::string list = folder_.file("held_out.txt");
  std::ofstream(list) << "# not these\ntask other mid*\nfile mmlu x.csv\n";
  EXPECT_THAT(message([&](DataDeck& d) { d.held_out = list; }), HasSubstr("task 'middle' is held out by " + list));
  std::ofstream(list) << "tasks middle\n";
  EXPECT_THAT(message([&](DataDeck& d) { d.held_out = list; }),
              HasSubstr("held_out.txt:1: expected \"task PATTERN...\""));
}

TEST(Flan2022, TheDeckHoldsThePublishedSharesAndCaps) {
  const Deck deck = parse_deck(FLANMOE_SOURCE_DIR "/input/flan2022.ini", {});
  const auto submixtures = parse_submixtures(deck.data.submixtures);
  ASSERT_EQ(submixtures.size(), 4U);
  std::int64_t tasks = 0;
  for (const Submixture& sub : submixtures) tasks += sub.tasks;
  EXPECT_EQ(tasks, 1836);
  const std::vector<double> shares = {46.0, 27.9, 1.8, 24.2};
  const std::vector<std::int64_t> caps = {30'000, 20'000, 100'000, 5'000};
  for (std::size_t i = 0; i < 4; ++i) {
    EXPECT_EQ(submixtures[i].share, shares[i]);
    EXPECT_EQ(submixtures[i].cap, caps[i]);
  }
  EXPECT_EQ(parse_submixtures("muffin=52:30000:80:a t0_sf=15:20000:193:b cot=3:100000:9:c niv2=30:5000:1554:d").size(),
            4U);
}

TEST(TaskSampler, NestedRatesAreDrawn) {
  // The Flan 2022 shares and caps on made-up sizes: 3 standard errors.
  const auto submixtures =
      parse_submixtures("muffin=46:30000:0:m_* t0=27.9:20000:0:t_* cot=1.8:100000:0:c_* niv2=24.2:5000:0:n_*");
  std::vector<SubmixtureTask> tasks;
  for (int i = 0; i < 40; ++i)
    tasks.push_back({std::string(1, "mtcn"[i % 4]) + "_" + std::to_string(i), 1000 * (i + 1), 1});
  const NestedRates nested = nested_rates(submixtures, tasks, 1);
  const TaskSampler sampler(11, tasks_with_rates(nested.rates));
  std::vector<double> counts(tasks.size(), 0), of_group(4, 0);
  constexpr int kDraws = 200'000;
  for (int d = 0; d < kDraws; ++d) {
    const std::size_t t = sampler.draw(std::uint32_t(d / 500), std::uint64_t(d % 500));
    ++counts[t];
    ++of_group[t % 4];
  }
  const std::vector<double> shares = {0.46, 0.279, 0.018, 0.242};
  for (std::size_t g = 0; g < 4; ++g) {
    const double p = shares[g] / 0.999;
    EXPECT_LE(std::abs(of_group[g] / kDraws - p), 3 * std::sqrt(p * (1 - p) / kDraws)) << g;
  }
  double worst = 0;
  for (std::size_t t = 0; t < tasks.size(); ++t) {
    const double p = nested.rates[t];
    worst = std::max(worst, std::abs(counts[t] / kDraws - p) / std::sqrt(p * (1 - p) / kDraws));
  }
  EXPECT_LT(worst, 4);  // of 40 tasks, one may lie beyond 3
}

TEST(TaskSampler, DrawsFollowTheRates) {
  const std::vector<double> rates = {0.5, 0.0, 0.3, 0.15, 0.05, 0.0};
  const TaskSampler sampler(7, tasks_with_rates(rates));
  std::vector<double> counts(rates.size(), 0);
  constexpr int kSteps = 400, kDraws = 500;
  for (std::uint32_t step = 0; step < kSteps; ++step) {
    for (std::uint64_t d = 0; d < kDraws; ++d) ++counts.at(sampler.draw(step, d));
  }
  const double n = kSteps * kDraws;
  for (std::size_t t = 0; t < rates.size(); ++t) {
    EXPECT_LE(std::abs(counts[t] / n - rates[t]), 3 * std::sqrt(rates[t] * (1 - rates[t]) / n)) << "task " << t;
  }
}

TEST(TaskSampler, NeighbouringDrawsAreIndependent) {
  const TaskSampler sampler(3, tasks_with_rates({0.5, 0.5}));
  int same_draw = 0, same_step = 0;
  constexpr int kPairs = 40000;
  for (std::uint32_t i = 0; i < kPairs; ++i) {
    same_draw += sampler.draw(i, 0) == sampler.draw(i, 1) ? 1 : 0;
    same_step += sampler.draw(i, 0) == sampler.draw(i + 1, 0) ? 1 : 0;
  }
  EXPECT_NEAR(same_draw, kPairs / 2, 3 * std::sqrt(kPairs / 4.0));
  EXPECT_NEAR(same_step, kPairs / 2, 3 * std::sqrt(kPairs / 4.0));
}

TEST(ItemOrder, AnEpochOfAddressesVisitsEveryItemOnce) {
  const MixtureTask task = task_of(1200, 0.25);
  const ItemOrder order(5, task, 30.0, 1 << 30);
  ASSERT_EQ(order.stride(), 13);  // ceil(1.25 * 7.5 + 3)
  for (std::int64_t epoch = 0; epoch < 3; ++epoch) {
    std::multiset<std::int64_t> seen;
    for (std::int64_t address = epoch * 1200; address < (epoch + 1) * 1200; ++address) {
      seen.insert(order.item(address / 13, address % 13));
    }
    EXPECT_EQ(std::set<std::int64_t>(seen.begin(), seen.end()).size(), 1200U);
    EXPECT_EQ(*seen.rbegin(), 1199);
  }
}

TEST(ItemOrder, EpochsTasksAndSeedsHaveTheirOwnOrder) {
  MixtureTask other = task_of(1000, 1);
  other.name = "other";
  const ItemOrder order(5, task_of(1000, 1), 8, 10), by_seed(6, task_of(1000, 1), 8, 10), by_task(5, other, 8, 10);
  ASSERT_EQ(order.stride(), 10);
  int epoch = 0, seed = 0, task = 0;
  for (std::int64_t s = 0; s < 100; ++s) {
    epoch += order.item(s, 0) == order.item(s + 100, 0) ? 1 : 0;
    seed += order.item(s, 0) == by_seed.item(s, 0) ? 1 : 0;
    task += order.item(s, 0) == by_task.item(s, 0) ? 1 : 0;
  }
  EXPECT_LT(epoch, 5);
  EXPECT_LT(seed, 5);
  EXPECT_LT(task, 5);
}

}  // namespace
}  // namespace flanmoe
