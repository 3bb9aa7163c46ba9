#include "data/mixture.hpp"

#include <algorithm>
#include <charconv>
#include <cmath>
#include <limits>
#include <map>

#include "base/error.hpp"
#include "data/flan/held_out.hpp"
#include "data/patterns.hpp"
#include "data/submixtures.hpp"
#include "data/text.hpp"
#include "tensor/philox.hpp"

namespace flanmoe {
namespace {

std::vector<std::string> task_names(const std::vector<MixtureTask>& tasks) {
  std::vector<std::string> names;
  for (const MixtureTask& task : tasks) names.push_back(task.name);
  return names;
}

/// All tasks of the shards that have examples in the split.
std::vector<MixtureTask> tasks_of_split(const std::string& split, const std::vector<ShardReader>& shards) {
  std::vector<MixtureTask> tasks;
  std::map<std::string, std::size_t> by_name;
  for (std::size_t s = 0; s < shards.size(); ++s) {
    for (std::size_t g = 0; g < shards[s].groups().size(); ++g) {
      const ShardGroup& group = shards[s].groups()[g];
      if (group.split != split) continue;
      const auto [at, is_new] = by_name.emplace(group.task, tasks.size());
      if (is_new) {
        tasks.emplace_back();
        tasks.back().name = group.task;
        tasks.back().is_text = !group.has_target;
      }
      MixtureTask& task = tasks[at->second];
      if (task.is_text == group.has_target) {
        usage_fail("data.train: task '{}' has text and pairs; shard {} disagrees with an earlier one, or with itself",
                   group.task, shards[s].path());
      }
      task.parts.push_back({s, std::int64_t(g), task.documents, task.stream_tokens});
      task.documents += group.examples;
      task.stream_tokens += group.stream_tokens;
    }
  }
  return tasks;
}

struct Weight {
  std::string pattern;
  double value = 1;
};

std::vector<Weight> parse_weights(const std::string& text) {
  std::vector<Weight> weights;
  for (const std::string& word : split_words(text)) {
    const std::size_t equals = word.rfind('=');
    Weight weight{word.substr(0, equals), -1};
    if (equals != std::string::npos && equals > 0) {
      const char* end = word.data() + word.size();
      const auto parsed = std::from_chars(word.data() + equals + 1, end, weight.value);
      if (parsed.ec != std::errc() || parsed.ptr != end) weight.value = -1;
    }
    if (!(weight.value >= 0) || std::isinf(weight.value)) {
      usage_fail("data.weights: '{}' is not of the form pattern=weight with a weight of at least 0", word);
    }
    weights.push_back(weight);
  }
  return weights;
}

/// Tasks that the list of data.held_out names may not be trained on.
void refuse_held_out(const std::string& path, const std::vector<MixtureTask>& tasks) {
  if (path.empty()) return;
  const flan::HeldOutList list = flan::parse_held_out(read_whole_file(path), path);
  for (const MixtureTask& task : tasks) {
    if (!matches_any(list.tasks, task.name)) continue;
    usage_fail("data.held_out: task '{}' is held out by {}; leave it out by data.exclude_tasks", task.name, path);
  }
}

}  // namespace

std::vector<MixtureTask> select_tasks(const DataDeck& deck, const std::vector<ShardReader>& shards) {
  std::vector<MixtureTask> tasks = tasks_of_split(deck.split, shards);
  if (tasks.empty()) usage_fail("data.split: no example of the shards of data.train is in split '{}'", deck.split);
  const auto wanted = split_words(deck.tasks), unwanted = split_words(deck.exclude_tasks);
  require_matches("data.tasks", wanted, task_names(tasks));
  require_matches("data.exclude_tasks", unwanted, task_names(tasks));
  std::erase_if(tasks, [&](const MixtureTask& task) {
    return !matches_any(wanted, task.name) || matches_any(unwanted, task.name);
  });
  if (tasks.empty()) {
    usage_fail("data.tasks: '{}' without data.exclude_tasks '{}' leaves no task", deck.tasks, deck.exclude_tasks);
  }
  refuse_held_out(deck.held_out, tasks);
  return tasks;
}

std::vector<std::string> set_rates(const DataDeck& deck, std::int64_t piece_length, std::vector<MixtureTask>& tasks) {
  const std::vector<Weight> weights = parse_weights(deck.weights);
  std::vector<std::string> patterns;
  for (const Weight& weight : weights) patterns.push_back(weight.pattern);
  require_matches("data.weights", patterns, task_names(tasks));
  const std::vector<Submixture> submixtures = parse_submixtures(deck.submixtures);
  std::vector<SubmixtureTask> weighted;
  double total = 0;
  for (MixtureTask& task : tasks) {
    task.items = task.is_text ? (task.stream_tokens + piece_length - 1) / piece_length : task.documents;
    const std::int64_t capped = deck.cap > 0 ? std::min(task.items, deck.cap) : task.items;
    task.rate = std::pow(double(capped), 1.0 / deck.temperature);
    double factor = 1;
    for (const Weight& weight : weights) {
      if (!matches_pattern(weight.pattern, task.name)) continue;
      task.rate *= weight.value;
      factor *= weight.value;
    }
    total += task.rate;
    weighted.push_back({task.name, task.items, factor});
  }
  if (!submixtures.empty()) {
    NestedRates nested = nested_rates(submixtures, weighted, deck.temperature);
    for (std::size_t t = 0; t < tasks.size(); ++t) tasks[t].rate = nested.rates[t];
    return std::move(nested.notes);
  }
  if (!(total > 0)) usage_fail("data.weights: '{}' leaves no task with a rate above 0", deck.weights);
  for (MixtureTask& task : tasks) task.rate /= total;
  return {};
}

TaskSampler::TaskSampler(std::uint64_t seed, const std::vector<MixtureTask>& tasks) : seed_(seed) {
  double sum = 0;
  for (const MixtureTask& task : tasks) cumulative_.push_back(sum += task.rate);
  // Rounding may leave the sum under 1; the tasks from the last one with a rate on take what is missing.
  for (double& bound : cumulative_) {
    if (bound == sum) bound = std::numeric_limits<double>::infinity();
  }
}

std::size_t TaskSampler::draw(std::uint32_t step, std::uint64_t d) const {
  const auto w = RandomKey{seed_, RandomPurpose::data_mixture, step, 0}.words(d, 0);
  const double u = double(((std::uint64_t{w[0]} << 32) | w[1]) >> 11) * 0x1.0p-53;
  return std::size_t(std::upper_bound(cumulative_.begin(), cumulative_.end(), u) - cumulative_.begin());
}

ItemOrder::ItemOrder(std::uint64_t seed, const MixtureTask& task, double draws_per_step, std::int64_t most_draws)
    : seed_(seed),
      name_(hash_name(task.name)),
      items_(task.items),
      stride_(std::min(most_draws, std::int64_t(std::ceil(1.25 * draws_per_step * task.rate + 3)))) {}

std::int64_t ItemOrder::item(std::int64_t step, std::int64_t count) const {
  const std::int64_t address = step * stride_ + count, epoch = address / items_;
  const auto key =
      RandomKey{seed_, RandomPurpose::data_order, std::uint32_t(epoch), std::uint32_t(epoch >> 32)}.words(name_, 0);
  const KeyedPermutation order(std::uint64_t(items_), (std::uint64_t{key[0]} << 32) | key[1]);
  return std::int64_t(order(std::uint64_t(address % items_)));
}

}  // namespace flanmoe
