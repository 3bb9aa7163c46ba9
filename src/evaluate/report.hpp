// The comparison of an MoE model and its dense twin, from the run folders that the tutorial leaves.
//
// Layout under the folder: <model>/<stage> with model = moe, dense and
//   pretrain, instruct, finetune_direct, finetune_instructed          metrics.jsonl and summary.json
//   evaluate_pretrain, evaluate_instruct, evaluate_direct, evaluate_instructed          evaluation.json
// finetune_direct starts from pretrain, finetune_instructed from instruct; the last two evaluations measure them.
#pragma once

#include <array>
#include <optional>
#include <string>
#include <vector>

#include "evaluate/files.hpp"
#include "evaluate/scores.hpp"

namespace flanmoe {

inline constexpr std::array<const char*, 2> report_models = {"moe", "dense"};
inline constexpr std::array<const char*, 4> report_stages = {"pretrain", "instruct", "finetune_direct",
                                                             "finetune_instructed"};

struct TrainingRun {
  std::string stage;
  std::vector<double> step, loss;  // every step; loss in nats per target token
  Share first, last;               // mean loss of the first and of the last tenth, n: steps
  double tokens_per_second = 0;
  std::optional<double> share_of_roof;    // of the speed of the machine's matrix products, if measured
  std::optional<double> flops_per_token;  // of a training step
  double parameters = 0;
};

/// Where tokens went: share of the choices per expert, times the number of experts (1: an even load).
struct ExpertLoad {
  std::vector<std::string> layers;
  std::vector<std::vector<double>> load;  // [layer][expert], mean over the last tenth of the instruct steps
};

/// One score of one model.
struct ScoreCell {
  std::optional<Share> acc, exact_match;
  std::optional<double> chance;
  /// The score that is compared: acc where the examples have choices, otherwise exact_match.
  const std::optional<Share>& main() const { return acc ? acc : exact_match; }
};

/// One line of the comparison.
struct Comparison {
  std::string name;                // "held_out_zero_shot", "finetune_direct", ...
  std::string title;               // for people
  std::string setup;               // "i", "ii", "iii" of the paper, or "baseline"
  std::array<ScoreCell, 2> cells;  // of report_models
  /// 'moe', 'dense', or 'even' when the difference is within two standard errors; "" when not measured.
  std::string winner() const;
};

struct Check {
  std::string name;
  bool passed = false;
  std::string detail;
};

struct Report {
  std::string folder, finetune_task;
  std::array<std::vector<TrainingRun>, 2> training;  // [model], in the order of report_stages
  std::vector<Comparison> comparisons;
  ExpertLoad load;
  std::vector<Check> checks;
  bool passed() const;
};

/// Reads everything. Throws Error naming the file that is missing or damaged.
Report read_report(const std::string& folder);

/// The printed table, line by line.
std::vector<std::string> report_table(const Report& report);
/// The same as JSON: FOLDER/summary.json.
Json report_json(const Report& report);
/// A self-contained SVG: loss curves, scores with chance and errors, expert load.
std::string report_svg(const Report& report);

}  // namespace flanmoe
