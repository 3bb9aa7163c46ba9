#include "evaluate/evaluation_report.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <filesystem>
#include <map>

#include "base/error.hpp"
#include "evaluate/scoreboard.hpp"

namespace flanmoe {
namespace {

namespace fs = std::filesystem;

Json read_evaluation(const std::string& path) {
  Json json = read_json_file(path);
  for (const char* key : {"tasks", "averages", "benchmarks", "normalized_averages"}) {
    if (!json.is_object() || !json.contains(key) || !json.at(key).is_array()) fail("{}: \"{}\" is missing", path, key);
  }
  number_in(json, "step", path);
  return json;
}

std::vector<std::string> step_files(const std::string& folder) {
  std::vector<std::string> files;
  std::error_code none;
  for (const auto& entry : fs::directory_iterator(folder + "/evaluations", none)) {
    const std::string name = entry.path().filename().string();
    if (name.starts_with("step-") && entry.path().extension() == ".json") files.push_back(entry.path().string());
  }
  std::sort(files.begin(), files.end());
  return files;
}

std::optional<double> percent_in(const Json& row, const char* name) {
  if (!row.contains(name) || row.at(name).is_null()) return std::nullopt;
  return 100 * row.at(name).get<double>();
}

ScoreBar bar_of(std::string name, const Json& row) {
  return {std::move(name), percent_in(row, "score"), percent_in(row, "score_stderr"), percent_in(row, "chance")};
}

std::string text_in(const Json& row, const char* name) { return row.at(name).get<std::string>(); }

/// The averages that stand for an evaluation without benchmarks: acc where there is one, otherwise exact_match.
std::optional<ScoreBar> average_bar(const Json& row) {
  for (const char* name : {"acc", "exact_match", "rouge_l"}) {
    if (row.at(name).is_null()) continue;
    const std::string set = text_in(row, "set") == "held_out" ? "held-out tasks" : "held-in tasks";
    return ScoreBar{fmt::format("{}, {} ({})", set, text_in(row, "variant"), name), percent_in(row, name),
                    percent_in(row, (std::string(name) + "_stderr").c_str()), std::nullopt};
  }
  return std::nullopt;
}

/// The scores that stand for a whole evaluation.
std::vector<ScoreBar> main_bars(const Json& evaluation) {
  std::vector<ScoreBar> bars;
  for (const Json& row : evaluation.at("benchmarks")) {
    bars.push_back(bar_of(fmt::format("{}, {}", text_in(row, "benchmark"), text_in(row, "variant")), row));
  }
  if (!bars.empty()) return bars;
  for (const Json& row : evaluation.at("averages")) {
    if (auto bar = average_bar(row)) bars.push_back(std::move(*bar));
  }
  return bars;
}

}  // namespace

bool has_evaluation(const std::string& folder) {
  return fs::exists(folder + "/evaluation.json") || !step_files(folder).empty();
}

EvaluationReport read_evaluation_report(const std::string& folder) {
  EvaluationReport report{folder, std::nullopt, {}};
  const std::string path = folder + "/evaluation.json";
  if (fs::exists(path)) report.evaluation = read_evaluation(path);
  for (const auto& file : step_files(folder)) report.over_steps.push_back(read_evaluation(file));
  if (!report.evaluation && report.over_steps.empty())
    fail("{}: holds neither evaluation.json nor evaluations/", folder);
  return report;
}

std::vector<BarGroup> bar_groups(const Json& evaluation) {
  std::vector<BarGroup> groups;
  for (const Json& row : evaluation.at("benchmarks")) {
    if (groups.empty()) groups.push_back({"benchmarks", {}});
    const std::string name = fmt::format("{}, {}", text_in(row, "benchmark"), text_in(row, "variant"));
    groups[0].bars.push_back(bar_of(name, row));
    for (const Json& group : row.at("groups")) {
      groups[0].bars.push_back(bar_of(fmt::format("{}: {}", name, text_in(group, "group")), group));
    }
  }
  std::vector<BarGroup> with_benchmark, without;
  for (const Json& row : evaluation.at("tasks")) {
    const std::string benchmark = text_in(row, "benchmark");
    const std::string set = row.at("held_out").get<bool>() ? "held-out tasks" : "held-in tasks";
    const std::string title = fmt::format("{}, {}", benchmark.empty() ? set : benchmark, text_in(row, "variant"));
    auto& list = benchmark.empty() ? without : with_benchmark;
    auto found = std::find_if(list.begin(), list.end(), [&](const BarGroup& g) { return g.title == title; });
    if (found == list.end()) found = list.insert(list.end(), {title, {}});
    found->bars.push_back(bar_of(text_in(row, "task"), row));
  }
  groups.insert(groups.end(), with_benchmark.begin(), with_benchmark.end());
  groups.insert(groups.end(), without.begin(), without.end());
  return groups;
}

std::vector<ScoreCurve> score_curves(const std::vector<Json>& over_steps) {
  std::vector<ScoreCurve> curves;
  for (const Json& evaluation : over_steps) {
    for (const ScoreBar& bar : main_bars(evaluation)) {
      auto found = std::find_if(curves.begin(), curves.end(), [&](const ScoreCurve& c) { return c.name == bar.name; });
      if (found == curves.end()) found = curves.insert(curves.end(), {bar.name, {}, {}, {}});
      found->step.push_back(evaluation.at("step").get<double>());
      found->score.push_back(bar.score.value_or(0));
      found->standard_error.push_back(bar.standard_error.value_or(0));
    }
  }
  return curves;
}

std::vector<std::string> evaluation_report_table(const EvaluationReport& report) {
  std::vector<std::string> lines;
  if (report.evaluation) lines = score_table(*report.evaluation);
  if (report.over_steps.empty()) return lines;
  if (!lines.empty()) lines.emplace_back();
  lines.push_back(fmt::format("{:>8}  {:<44} {:>12}", "step", "score while training", "%"));
  for (const Json& evaluation : report.over_steps) {
    for (const ScoreBar& bar : main_bars(evaluation)) {
      lines.push_back(fmt::format("{:>8}  {:<44} {:6.1f} ±{:4.1f}", evaluation.at("step").get<std::int64_t>(), bar.name,
                                  bar.score.value_or(0), bar.standard_error.value_or(0)));
    }
  }
  return lines;
}

}  // namespace flanmoe
