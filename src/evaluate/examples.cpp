#include "evaluate/examples.hpp"

#include <algorithm>
#include <filesystem>
#include <map>
#include <numeric>
#include <set>

#include "base/error.hpp"
#include "data/block_pool.hpp"
#include "data/patterns.hpp"
#include "tensor/philox.hpp"

namespace flanmoe {
namespace {

std::string joined(const std::set<std::string>& names) {
  std::string text;
  for (const auto& name : names) text += (text.empty() ? "" : ", ") + name;
  return text;
}

}  // namespace

std::vector<std::int64_t> keyed_subset(std::int64_t n, std::int64_t limit, std::uint64_t key) {
  const bool all = limit <= 0 || limit >= n;
  std::vector<std::int64_t> chosen(std::size_t(all ? n : limit));
  std::iota(chosen.begin(), chosen.end(), 0);
  if (all) return chosen;
  const KeyedPermutation permutation(std::uint64_t(n), key);
  for (auto& i : chosen) i = std::int64_t(permutation(std::uint64_t(i)));
  std::sort(chosen.begin(), chosen.end());
  return chosen;
}

EvaluationExamples::EvaluationExamples(const Deck& deck)
    : files_(expand_paths("evaluate.shards", deck.evaluate.shards)) {
  std::map<std::pair<std::string, std::string>, std::vector<Place>> by_task;  // (task, variant)
  std::set<std::string> tasks, splits;
  std::map<std::string, std::pair<TaskInfo, std::string>> infos;  // of each task, and the file that says so
  const auto patterns = split_words(deck.evaluate.tasks);
  const auto pool = std::make_shared<BlockPool>(kBlockBytes);
  for (const auto& file : files_) {
    shards_.push_back(std::make_unique<ShardReader>(file, pool));
    const ShardReader& shard = *shards_.back();
    if (shard.tokenizer().fingerprint != tokenizer().fingerprint) {
      usage_fail("evaluate.shards: {} was made with tokenizer {}, {} with {}", file, shard.tokenizer().fingerprint,
                 files_.front(), tokenizer().fingerprint);
    }
    for (std::int64_t i = 0; i < shard.size(); ++i) {
      tasks.insert(shard.task(i));
      splits.insert(shard.split(i));
      if (!shard.has_target(i) || shard.split(i) != deck.evaluate.split) continue;
      if (!matches_any(patterns, shard.task(i))) continue;
      const auto& [info, first_file] = infos.emplace(shard.task(i), std::pair(shard.task_info(i), file)).first->second;
      if (info != shard.task_info(i)) {
        usage_fail("evaluate.shards: {} and {} say differently how task {} is measured", first_file, file,
                   shard.task(i));
      }
      by_task[{shard.task(i), shard.variant(i)}].push_back({shards_.size() - 1, i});
    }
  }
  require_matches("evaluate.tasks", patterns, {tasks.begin(), tasks.end()});
  for (const auto& [name, places] : by_task) {
    const std::uint64_t key = hash_name(fmt::format("{}/{}/{}", deck.run.seed, name.first, name.second));
    for (const auto i : keyed_subset(std::int64_t(places.size()), deck.evaluate.limit, key)) {
      places_.push_back(places[std::size_t(i)]);
    }
  }
  if (places_.empty()) {
    usage_fail("evaluate: no example has split '{}' and a task like '{}'; the shards hold splits: {}; tasks: {}",
               deck.evaluate.split, deck.evaluate.tasks, joined(splits), joined(tasks));
  }
  std::sort(places_.begin(), places_.end(),
            [](const Place& a, const Place& b) { return std::pair(a.shard, a.index) < std::pair(b.shard, b.index); });
}

Example EvaluationExamples::read(std::int64_t i) const {
  const Place& place = places_[std::size_t(i)];
  return shards_[place.shard]->read(place.index);
}

std::int64_t EvaluationExamples::input_length(std::int64_t i) const {
  const Place& place = places_[std::size_t(i)];
  return shards_[place.shard]->input_length(place.index);
}

const std::string& EvaluationExamples::path(std::int64_t i) const { return files_[places_[std::size_t(i)].shard]; }

const TaskInfo& EvaluationExamples::task_info(std::int64_t i) const {
  const Place& place = places_[std::size_t(i)];
  return shards_[place.shard]->task_info(place.index);
}

std::uint64_t EvaluationExamples::id(std::int64_t i) const {
  return hash_name(fmt::format("{} {}", std::filesystem::path(path(i)).filename().string(), index_in_shard(i)));
}

std::vector<std::vector<std::int64_t>> plan_rounds(const std::vector<std::int64_t>& lengths, int ranks, int rank,
                                                   std::int64_t rows_per_rank) {
  FLANMOE_EXPECT(ranks > 0 && rank >= 0 && rank < ranks && rows_per_rank > 0, "rank {} of {}, {} rows", rank, ranks,
                 rows_per_rank);
  std::vector<std::int64_t> order(lengths.size());
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(),
                   [&](std::int64_t a, std::int64_t b) { return lengths[std::size_t(a)] < lengths[std::size_t(b)]; });
  const std::size_t per_round = std::size_t(ranks) * std::size_t(rows_per_rank);
  std::vector<std::vector<std::int64_t>> rounds((order.size() + per_round - 1) / per_round);
  for (std::size_t i = std::size_t(rank); i < order.size(); i += std::size_t(ranks)) {
    rounds[i / per_round].push_back(order[i]);
  }
  return rounds;
}

}  // namespace flanmoe
