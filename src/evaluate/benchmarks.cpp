#include "evaluate/benchmarks.hpp"

#include <algorithm>
#include <cmath>
#include <map>

namespace flanmoe {
namespace {

/// What is averaged: a task, or the mean of tasks that are parts of one.
struct Unit {
  std::string group;
  double score = 0, variance = 0, chance = 0, normalized = 0;
  std::int64_t parts = 0, n = 0;

  void add(const TaskScore& task) {
    group = task.info.group;
    score += task.score->value;
    variance += task.score->standard_error * task.score->standard_error;
    chance += task.chance.value_or(0);
    // A chance of exactly 1 leaves nothing to score.
    normalized += task.chance.value_or(0) < 1 ? task.normalized_score.value_or(100 * task.score->value) : 0;
    n += task.score->n;
    ++parts;
  }
};

MeanOfTasks mean_of(const std::string& name, const std::vector<const Unit*>& units) {
  MeanOfTasks mean{name, std::int64_t(units.size()), 0, {}, 0, 0};
  double variance = 0;
  for (const Unit* unit : units) {
    const auto parts = double(unit->parts);
    mean.n += unit->n;
    mean.score.value += unit->score / parts;
    variance += unit->variance / (parts * parts);
    mean.chance += unit->chance / parts;
    mean.normalized_score += unit->normalized / parts;
  }
  const auto tasks = double(units.size());
  mean.score.value /= tasks;
  mean.score.standard_error = std::sqrt(variance) / tasks;
  mean.score.n = mean.n;
  mean.chance /= tasks;
  mean.normalized_score /= tasks;
  return mean;
}

BenchmarkScore score_of(const std::string& benchmark, const std::string& variant,
                        const std::map<std::string, Unit>& units) {
  std::vector<const Unit*> all;
  std::map<std::string, std::vector<const Unit*>> groups;
  for (const auto& [name, unit] : units) {
    all.push_back(&unit);
    if (!unit.group.empty()) groups[unit.group].push_back(&unit);
  }
  BenchmarkScore score{benchmark, variant, mean_of("", all), {}};
  for (const auto& [name, members] : groups) score.groups.push_back(mean_of(name, members));
  return score;
}

struct Wanted {
  const char* name;
  const char* benchmark;
  std::vector<const char*> variants;  // the first that was measured counts
};

NormalizedAverage average(const std::string& name, const std::vector<Wanted>& wanted,
                          const std::vector<BenchmarkScore>& benchmarks) {
  NormalizedAverage result{name, {}, std::nullopt, std::nullopt};
  double raw = 0, normalized = 0;
  bool complete = true;
  for (const Wanted& part : wanted) {
    const BenchmarkScore* found = nullptr;
    for (const char* variant : part.variants) {
      for (const BenchmarkScore& b : benchmarks) {
        if (found == nullptr && b.benchmark == part.benchmark && b.variant == variant) found = &b;
      }
    }
    complete = complete && found != nullptr;
    result.parts.push_back({part.name, found == nullptr ? "" : found->variant, std::nullopt, std::nullopt});
    if (found == nullptr) continue;
    result.parts.back().score = found->all.score.value;
    result.parts.back().normalized_score = found->all.normalized_score;
    raw += 100 * found->all.score.value / double(wanted.size());
    normalized += found->all.normalized_score / double(wanted.size());
  }
  if (complete) result.raw = raw, result.normalized = normalized;
  return result;
}

}  // namespace

std::vector<BenchmarkScore> score_benchmarks(const std::vector<TaskScore>& tasks) {
  // Variants keep the order in which score_tasks has them; held-in and held-out tasks of a benchmark come together.
  std::vector<std::pair<std::string, std::string>> order;
  std::map<std::pair<std::string, std::string>, std::map<std::string, Unit>> units;
  for (const TaskScore& task : tasks) {
    if (task.info.benchmark.empty() || !task.score) continue;
    const std::pair key(task.info.benchmark, task.variant);
    if (!units.contains(key)) order.push_back(key);
    units[key][task.info.part_of.empty() ? task.task : task.info.part_of].add(task);
  }
  std::stable_sort(order.begin(), order.end(), [](const auto& a, const auto& b) { return a.first < b.first; });
  std::vector<BenchmarkScore> scores;
  for (const auto& key : order) scores.push_back(score_of(key.first, key.second, units[key]));
  return scores;
}

std::vector<NormalizedAverage> normalized_averages(const std::vector<BenchmarkScore>& benchmarks) {
  const std::vector<const char*> direct = {"few_shot", "zero_shot"}, cot = {"cot_few_shot", "cot"};
  return {average("flan_2022",
                  {{"MMLU-Direct", "mmlu", direct},
                   {"MMLU-CoT", "mmlu", cot},
                   {"BBH-Direct", "bbh", direct},
                   {"BBH-CoT", "bbh", cot},
                   {"TyDiQA-Direct", "tydiqa", direct},
                   {"MGSM-CoT", "mgsm", cot}},
                  benchmarks),
          average("flan_moe",
                  {{"MMLU-Direct", "mmlu", direct},
                   {"BBH-Direct", "bbh", direct},
                   {"Reasoning-CoT", "reasoning", cot},
                   {"QA-Direct", "qa", {"zero_shot", "few_shot"}}},
                  benchmarks)};
}

}  // namespace flanmoe
