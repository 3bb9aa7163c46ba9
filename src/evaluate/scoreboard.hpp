// RUN/evaluation.json and the printed table: one place that knows the names of its members.
#pragma once

#include <string>
#include <vector>

#include "evaluate/benchmarks.hpp"
#include "evaluate/files.hpp"
#include "evaluate/scores.hpp"

namespace flanmoe {

/// What the numbers of evaluation.json mean, for a reader of the file.
Json score_definitions();
Json to_json(const TaskScore& score);
Json to_json(const MeanScore& score);
Json to_json(const BenchmarkScore& score);
Json to_json(const NormalizedAverage& average);
/// "tasks", "averages", "benchmarks" and "normalized_averages" of evaluation.json.
void put_scores(Json& evaluation, const std::vector<ExampleOutcome>& outcomes);

/// One line for each set and variant: its averages.
std::vector<std::string> average_lines(const Json& evaluation);

/// The table of an evaluation.json, ready to print: tasks, averages, benchmarks. Percentages with their standard
/// errors.
std::vector<std::string> score_table(const Json& evaluation);

}  // namespace flanmoe
