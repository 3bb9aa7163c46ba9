#include "data/mixture.hpp"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <set>

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
