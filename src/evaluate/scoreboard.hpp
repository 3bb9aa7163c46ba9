// RUN/evaluation.json and the printed table: one place that knows the names of its members.
#pragma once

#include <string>
#include <vector>

#include "evaluate/files.hpp"
#include "evaluate/scores.hpp"

namespace flanmoe {

/// What the numbers of evaluation.json mean, for a reader of the file.
Json score_definitions();
Json to_json(const TaskScore& score);
Json to_json(const MeanScore& score);

/// The table of an evaluation.json, ready to print: tasks, then averages. Percentages with their standard errors.
std::vector<std::string> score_table(const Json& evaluation);

}  // namespace flanmoe
