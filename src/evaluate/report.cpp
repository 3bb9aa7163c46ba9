#include "evaluate/report.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "base/error.hpp"

namespace flanmoe {
namespace {

constexpr double sure = 3.0;    // standard errors that a check asks for
constexpr double differ = 2.0;  // standard errors that two models must be apart

/// Mean and its standard error of values [first, first+count).
Share mean_of(const std::vector<double>& values, std::size_t first, std::size_t count) {
  double sum = 0, squares = 0;
  for (std::size_t i = first; i < first + count; ++i) sum += values[i];
  const double mean = sum / double(count);
  for (std::size_t i = first; i < first + count; ++i) squares += (values[i] - mean) * (values[i] - mean);
  const double error = count > 1 ? std::sqrt(squares / double(count - 1) / double(count)) : 0.0;
  return {mean, error, std::int64_t(count)};
}

std::size_t tenth_of(std::size_t n) { return std::max<std::size_t>(1, n / 10); }

std::optional<double> optional_number(const Json& object, const std::string& key) {
  if (!object.contains(key) || !object.at(key).is_number()) return std::nullopt;
  return object.at(key).get<double>();
}

TrainingRun read_training(const std::string& folder, const std::string& stage) {
  TrainingRun run;
  run.stage = stage;
  const std::string metrics = folder + "/metrics.jsonl", summary = folder + "/summary.json";
  for (const Json& record : read_json_lines(metrics)) {
    run.step.push_back(number_in(record, "step", metrics));
    run.loss.push_back(number_in(record, "loss", metrics));
  }
  if (run.loss.empty()) fail("{}: no step is recorded", metrics);
  const std::size_t tenth = tenth_of(run.loss.size());
  run.first = mean_of(run.loss, 0, tenth);
  run.last = mean_of(run.loss, run.loss.size() - tenth, tenth);
  const Json j = read_json_file(summary);
  run.tokens_per_second = number_in(j, "tokens_per_second", summary);
  run.parameters = number_in(j, "parameters", summary);
  run.share_of_roof = optional_number(j, "share_of_roof");
  run.flops_per_token = optional_number(j, "flops_per_token");
  return run;
}

ExpertLoad read_load(const std::string& folder) {
  const std::string path = folder + "/metrics.jsonl";
  const auto records = read_json_lines(path);
  ExpertLoad load;
  const std::size_t tenth = tenth_of(records.size());
  for (std::size_t i = records.size() - tenth; i < records.size(); ++i) {
    if (!records[i].contains("moe") || !records[i].at("moe").is_object()) fail("{}: \"moe\" is missing", path);
    for (const auto& [layer, values] : records[i].at("moe").items()) {
      const auto shares = values.at("load").get<std::vector<double>>();
      auto at = std::size_t(std::find(load.layers.begin(), load.layers.end(), layer) - load.layers.begin());
      if (at == load.layers.size()) {
        load.layers.push_back(layer);
        load.load.emplace_back(shares.size(), 0.0);
      }
      if (load.load[at].size() != shares.size()) fail("{}: the number of experts of {} changes", path, layer);
      for (std::size_t e = 0; e < shares.size(); ++e) {
        load.load[at][e] += shares[e] * double(shares.size()) / double(tenth);
      }
    }
  }
  if (load.layers.empty()) fail("{}: no sparse layer is recorded for the MoE model", path);
  return load;
}

std::optional<Share> share_in(const Json& row, const std::string& name, const std::string& path) {
  if (row.contains(name) && row.at(name).is_null()) return std::nullopt;
  const double n = number_in(row, "n", path);
  return Share{number_in(row, name, path), number_in(row, name + "_stderr", path), std::int64_t(n)};
}

ScoreCell cell_of(const Json& row, const std::string& path) {
  return {share_in(row, "acc", path), share_in(row, "exact_match", path), optional_number(row, "chance")};
}

/// An evaluation.json and its place.
struct Evaluation {
  std::string path;
  Json json;
  explicit Evaluation(const std::string& folder) : path(folder + "/evaluation.json"), json(read_json_file(path)) {
    for (const char* key : {"tasks", "averages"}) {
      if (!json.contains(key) || !json.at(key).is_array()) fail("{}: \"{}\" is missing", path, key);
    }
  }
  /// Empty cell when the variant was not measured.
  ScoreCell average(const std::string& set, const std::string& variant) const {
    for (const Json& row : json.at("averages")) {
      if (row.at("set") == set && row.at("variant") == variant) return cell_of(row, path);
    }
    return {};
  }
  ScoreCell task(const std::string& name, const std::string& variant) const {
    for (const Json& row : json.at("tasks")) {
      if (row.at("task") == name && row.at("variant") == variant) return cell_of(row, path);
    }
    fail("{}: task {} ({}) was not measured", path, name, variant);
  }
  std::string only_task() const {
    std::string name;
    for (const Json& row : json.at("tasks")) {
      if (!name.empty() && row.at("task") != name) fail("{}: expected the one finetuned task, found several", path);
      name = row.at("task").get<std::string>();
    }
    if (name.empty()) fail("{}: no task was measured", path);
    return name;
  }
};

struct Evaluations {
  Evaluation pretrain, instruct, direct, instructed;
  explicit Evaluations(const std::string& model)
      : pretrain(model + "/evaluate_pretrain"),
        instruct(model + "/evaluate_instruct"),
        direct(model + "/evaluate_direct"),
        instructed(model + "/evaluate_instructed") {}
};

std::vector<Comparison> compare(const std::array<Evaluations, 2>& models, const std::string& task) {
  std::vector<Comparison> rows = {
      {"held_in_zero_shot", "held-in tasks, zero-shot", "ii", {}},
      {"held_in_few_shot", "held-in tasks, few-shot", "ii", {}},
      {"held_in_cot", "held-in tasks, chain of thought", "ii", {}},
      {"held_in_cot_few_shot", "held-in tasks, chain of thought, few-shot", "ii", {}},
      {"held_out_zero_shot", "held-out tasks, zero-shot", "ii", {}},
      {"held_out_few_shot", "held-out tasks, few-shot", "ii", {}},
      {"pretrained_only", task + ": pretrained only", "baseline", {}},
      {"finetune_direct", task + ": finetuned", "i", {}},
      {"instruct_only", task + ": instruction-tuned", "ii", {}},
      {"finetune_instructed", task + ": instruction-tuned, finetuned", "iii", {}},
  };
  for (std::size_t m = 0; m < models.size(); ++m) {
    const Evaluations& e = models[m];
    const std::vector<ScoreCell> cells = {
        e.instruct.average("held_in", "zero_shot"),  e.instruct.average("held_in", "few_shot"),
        e.instruct.average("held_in", "cot"),        e.instruct.average("held_in", "cot_few_shot"),
        e.instruct.average("held_out", "zero_shot"), e.instruct.average("held_out", "few_shot"),
        e.pretrain.task(task, "zero_shot"),          e.direct.task(task, "zero_shot"),
        e.instruct.task(task, "zero_shot"),          e.instructed.task(task, "zero_shot"),
    };
    for (std::size_t i = 0; i < rows.size(); ++i) rows[i].cells[m] = cells[i];
  }
  std::erase_if(rows, [](const Comparison& row) { return !row.cells[0].main() && !row.cells[1].main(); });
  return rows;
}

Check loss_check(const std::string& model, const TrainingRun& run) {
  const double error = std::hypot(run.first.standard_error, run.last.standard_error);
  const double fall = run.first.value - run.last.value;
  return {fmt::format("{}: loss of {} fell", model, run.stage), fall > 0 && fall > sure * error,
          fmt::format("mean of the first tenth {:.3f} -> of the last tenth {:.3f} nats/token (needed: a fall of more "
                      "than {:.3f}, {} standard errors)",
                      run.first.value, run.last.value, sure * error, sure)};
}

Check chance_check(const std::string& model, const Comparison& row, const ScoreCell& cell) {
  Check check{fmt::format("{}: accuracy above chance on {}", model, row.title), false, "not measured"};
  if (!cell.acc || !cell.chance) return check;
  const double needed = *cell.chance + sure * cell.acc->standard_error;
  check.passed = cell.acc->value > needed;
  check.detail = fmt::format("{:.1f}% against chance {:.1f}% (needed: more than {:.1f}%, {} standard errors)",
                             100 * cell.acc->value, 100 * *cell.chance, 100 * needed, sure);
  return check;
}

std::vector<Check> make_checks(const Report& report) {
  std::vector<Check> checks;
  for (std::size_t m = 0; m < report_models.size(); ++m) {
    for (const std::size_t stage : {0U, 1U}) checks.push_back(loss_check(report_models[m], report.training[m][stage]));
    for (const Comparison& row : report.comparisons) {
      const bool held_in = row.name == "held_in_zero_shot" || row.name == "held_in_few_shot";
      if (held_in) checks.push_back(chance_check(report_models[m], row, row.cells[m]));
    }
  }
  return checks;
}

}  // namespace

std::string Comparison::winner() const {
  const auto &a = cells[0].main(), &b = cells[1].main();
  if (!a || !b) return "";
  const double difference = a->value - b->value;
  if (std::abs(difference) <= differ * std::hypot(a->standard_error, b->standard_error)) return "even";
  return report_models[difference > 0 ? 0 : 1];
}

bool Report::passed() const {
  return std::all_of(checks.begin(), checks.end(), [](const Check& c) { return c.passed; });
}

Report read_report(const std::string& folder) {
  Report report;
  report.folder = folder;
  for (std::size_t m = 0; m < report_models.size(); ++m) {
    for (const char* stage : report_stages) {
      report.training[m].push_back(read_training(fmt::format("{}/{}/{}", folder, report_models[m], stage), stage));
    }
  }
  const std::array<Evaluations, 2> evaluations = {Evaluations(folder + "/" + report_models[0]),
                                                  Evaluations(folder + "/" + report_models[1])};
  report.finetune_task = evaluations[0].direct.only_task();
  report.comparisons = compare(evaluations, report.finetune_task);
  report.load = read_load(folder + "/moe/instruct");
  report.checks = make_checks(report);
  return report;
}

}  // namespace flanmoe
