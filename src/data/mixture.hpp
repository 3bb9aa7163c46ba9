// Which examples a run trains on and how often: tasks, their rates, and the order of their examples.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "data/shard.hpp"
#include "deck/deck.hpp"

namespace flanmoe {

/// The share of one shard in a task.
struct TaskPart {
  std::size_t shard = 0;
  std::int64_t group = 0;         // of that shard
  std::int64_t first = 0;         // examples of the task in earlier parts
  std::int64_t stream_first = 0;  // tokens of the task's text stream in earlier parts
};

/// A task of the mixture. Pairs are drawn as examples; text as pieces of `piece_length` tokens of the stream
/// "document EOS document EOS ..." over all shards (the last piece may be shorter).
struct MixtureTask {
  std::string name;
  bool is_text = false;
  std::vector<TaskPart> parts;
  std::int64_t documents = 0;      // examples in the shards
  std::int64_t stream_tokens = 0;  // text only
  std::int64_t items = 0;          // what a draw picks from: examples, or pieces
  double rate = 0;                 // probability of a draw
};

/// The tasks that deck.tasks, exclude_tasks and split leave, in order of first appearance, without items and rates.
std::vector<MixtureTask> select_tasks(const DataDeck& deck, const std::vector<ShardReader>& shards);
/// Sets items and rates: min(items, cap)^(1/temperature) * weights, normalised; with sub-mixtures their nested rates.
/// Gives notes for the log on what the sub-mixtures hold and lack.
std::vector<std::string> set_rates(const DataDeck& deck, std::int64_t piece_length, std::vector<MixtureTask>& tasks);

/// Independent draws of a task: draw d of a step is a pure function of (seed, step, d).
class TaskSampler {
 public:
  TaskSampler(std::uint64_t seed, const std::vector<MixtureTask>& tasks);
  std::size_t draw(std::uint32_t step, std::uint64_t d) const;

 private:
  std::uint64_t seed_;
  std::vector<double> cumulative_;
};

/// The order in which a task's items are used. Item `count` of step s stands at address s * stride + count; address a
/// lies in epoch a / items, whose order is a keyed permutation. So any step is reached in O(1), without knowing how
/// often the task was drawn before.
///
/// The number of draws of a task in a step is random, so the stride must leave room: ceil(1.25 * expected + 3). Within
/// an epoch an item then comes at most once unless a step draws the task more often than that, in which case the
/// surplus comes again in the next step. Addresses that a step leaves unused pass over an item for that epoch; as every
/// epoch has an order of its own, all items are still used equally often in the long run. Where the number of draws of
/// a step is known (`most_draws`), the stride is never larger, and text alone is used exactly once an epoch.
class ItemOrder {
 public:
  ItemOrder(std::uint64_t seed, const MixtureTask& task, double draws_per_step, std::int64_t most_draws);
  std::int64_t item(std::int64_t step, std::int64_t count) const;
  std::int64_t stride() const { return stride_; }

 private:
  std::uint64_t seed_, name_;
  std::int64_t items_, stride_;
};

}  // namespace flanmoe
