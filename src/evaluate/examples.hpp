// Which examples an evaluation measures: a function of the shards, the deck and the seed, never of the ranks.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "data/shard.hpp"
#include "deck/deck.hpp"

namespace flanmoe {

/// `limit` of `n` (all when limit is 0 or not below n), ascending: a keyed sample, so that a small limit still sees the
/// whole range of a sorted file.
std::vector<std::int64_t> keyed_subset(std::int64_t n, std::int64_t limit, std::uint64_t key);

/// The chosen examples of evaluate.shards, in the order of shards and of their examples.
class EvaluationExamples {
 public:
  /// Takes split, tasks and limit (per task and variant) from the deck. Throws UsageError when shards disagree on the
  /// tokenizer, a task pattern matches no task, or nothing is left, saying what the shards hold.
  explicit EvaluationExamples(const Deck& deck);

  std::int64_t size() const { return std::int64_t(places_.size()); }
  Example read(std::int64_t i) const;
  std::int64_t input_length(std::int64_t i) const;
  const std::string& path(std::int64_t i) const;
  /// Names the example in random numbers: a function of the name of its file and its place there.
  std::uint64_t id(std::int64_t i) const;
  const TaskInfo& task_info(std::int64_t i) const;
  std::int64_t index_in_shard(std::int64_t i) const { return places_[std::size_t(i)].index; }
  const TokenizerIdentity& tokenizer() const { return shards_.front()->tokenizer(); }
  const std::vector<std::string>& files() const { return files_; }

 private:
  struct Place {
    std::size_t shard;
    std::int64_t index;
  };
  std::vector<std::string> files_;
  std::vector<std::unique_ptr<ShardReader>> shards_;
  std::vector<Place> places_;
};

/// How examples are spread: sorted by input length, cut into rounds of ranks * rows_per_rank neighbours, and dealt one
/// by one to the ranks. Every rank takes part in every round, with what it has.
/// Returns [round] -> examples of `rank` (possibly none).
std::vector<std::vector<std::int64_t>> plan_rounds(const std::vector<std::int64_t>& lengths, int ranks, int rank,
                                                   std::int64_t rows_per_rank);

}  // namespace flanmoe
