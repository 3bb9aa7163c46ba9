// The evaluations of one run folder, as tables and as a picture: evaluation.json of an evaluate stage, and
// evaluations/step-*.json of a training that measured itself.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "evaluate/files.hpp"

namespace flanmoe {

struct EvaluationReport {
  std::string folder;
  std::optional<Json> evaluation;  // evaluation.json
  std::vector<Json> over_steps;    // by step
};

/// True when the folder holds an evaluation.
bool has_evaluation(const std::string& folder);
/// Throws Error naming the file that is damaged.
EvaluationReport read_evaluation_report(const std::string& folder);

/// One bar of the picture: a score in percent with its error, and what guessing scores.
struct ScoreBar {
  std::string name;
  std::optional<double> score, standard_error, chance;  // percent
};
struct BarGroup {
  std::string title;
  std::vector<ScoreBar> bars;
};
/// Benchmarks (with their groups) first, then the tasks of every benchmark and variant, then tasks without a benchmark.
std::vector<BarGroup> bar_groups(const Json& evaluation);

/// A score over the steps of a training: of a benchmark where there are any, otherwise averages of tasks.
struct ScoreCurve {
  std::string name;
  std::vector<double> step, score, standard_error;  // percent
};
std::vector<ScoreCurve> score_curves(const std::vector<Json>& over_steps);

std::vector<std::string> evaluation_report_table(const EvaluationReport& report);
/// A self-contained SVG.
std::string evaluation_report_svg(const EvaluationReport& report);

}  // namespace flanmoe
