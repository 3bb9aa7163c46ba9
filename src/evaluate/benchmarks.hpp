// From scores of tasks to scores of benchmarks, and the two normalised averages of the literature.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "evaluate/scores.hpp"

namespace flanmoe {

/// Unweighted mean over the tasks of a benchmark, or of one group of them. Tasks that are parts of one
/// (TaskInfo::part_of) are averaged to one task first.
struct MeanOfTasks {
  std::string name;  // of the group; empty for the whole benchmark
  std::int64_t tasks = 0, n = 0;
  Share score;              // standard error: tasks are independent; n: examples
  double chance = 0;        // mean of the tasks'
  double normalized_score;  // mean of the tasks' 100 (score - chance) / (1 - chance); a task without chance has 0
};

/// One benchmark in one variant.
struct BenchmarkScore {
  std::string benchmark, variant;
  MeanOfTasks all;
  std::vector<MeanOfTasks> groups;  // by name; empty when the benchmark has none
};

/// Benchmarks by name, variants in the order of score_tasks. Tasks without a benchmark or a score are left out.
std::vector<BenchmarkScore> score_benchmarks(const std::vector<TaskScore>& tasks);

/// A mean over benchmarks, as published.
struct NormalizedAverage {
  struct Part {
    std::string name;     // "MMLU-Direct"
    std::string variant;  // that stands for it; empty: none was measured
    std::optional<double> score, normalized_score;
  };
  std::string name;  // "flan_2022" or "flan_moe"
  std::vector<Part> parts;
  /// 100 * mean of the scores, and mean of the chance-corrected scores; absent unless every part was measured.
  std::optional<double> raw, normalized;
};

/// flan_2022: six scores, MMLU and BBH direct and by chain of thought, TyDiQA direct, MGSM by chain of thought (Chung
/// et al. 2022). flan_moe: four, MMLU direct, BBH direct, reasoning by chain of thought, QA direct; whether the
/// published numbers are corrected for chance is not known, so both means are given. Direct parts take few_shot before
/// zero_shot (QA the other way round), the others cot_few_shot before cot.
std::vector<NormalizedAverage> normalized_averages(const std::vector<BenchmarkScore>& benchmarks);

}  // namespace flanmoe
