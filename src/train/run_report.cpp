#include "train/run_report.hpp"

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <functional>
#include <nlohmann/json.hpp>

#include "base/error.hpp"
#include "evaluate/chart.hpp"
#include "evaluate/evaluation_report.hpp"
#include "evaluate/svg.hpp"
#include "train/run_folder.hpp"
#include "train/watch.hpp"

namespace flanmoe {
namespace {

using nlohmann::json;

/// An SVG file as part of a page: without its XML declaration.
std::string inlined(const std::string& svg) {
  const std::size_t begin = svg.find("<svg");
  return "<figure>" + svg.substr(std::min(begin, svg.size())) + "</figure>\n";
}

std::string row_html(const std::string& name, const std::string& value) {
  return fmt::format("<tr><th>{}</th><td>{}</td></tr>\n", escaped(name), escaped(value));
}

Curve curve_of(const RunView& run, const std::string& name, const std::function<double(const StepRecord&)>& value) {
  Curve curve{name, {}, false};
  for (const StepRecord& record : run.records) curve.points.emplace_back(double(record.step), value(record));
  return curve;
}

std::string step_plots(const RunView& run) {
  const auto plot = [&](const std::string& title, const std::string& unit, std::optional<double> low,
                        const std::function<double(const StepRecord&)>& value) {
    return inlined(curve_chart({.title = title,
                                .x_label = "step",
                                .y_label = unit,
                                .curves = {curve_of(run, title, value)},
                                .low_y = low,
                                .high_y = {}}));
  };
  return plot("Loss", "nats per target token", {}, [](const StepRecord& r) { return r.loss; }) +
         plot("Accuracy", "share of target tokens", {}, [](const StepRecord& r) { return r.accuracy; }) +
         plot("Gradient norm", "before clipping", {}, [](const StepRecord& r) { return r.grad_norm; }) +
         plot("Learning rate", "", {}, [](const StepRecord& r) { return r.learning_rate; }) +
         plot("Speed", "tokens/s", 0, [](const StepRecord& r) { return r.tokens_per_second(); });
}

std::string expert_plots(const RunView& run) {
  if (run.records.empty() || run.records.back().moe.empty()) return "";
  const std::vector<MoeLayerRecord> recent = recent_layers(run.records);
  std::vector<ShadeRow> loads;
  CurveChart dropped{.title = "Choices that found no slot",
                     .x_label = "step",
                     .y_label = "share",
                     .curves = {},
                     .low_y = 0,
                     .high_y = {}};
  CurveChart entropy{.title = "Router entropy",
                     .x_label = "step",
                     .y_label = "nats per token",
                     .curves = {},
                     .low_y = 0,
                     .high_y = {}};
  for (std::size_t l = 0; l < recent.size(); ++l) {
    ShadeRow row{recent[l].layer, recent[l].load_E};
    for (double& load : row.values) load *= double(row.values.size());
    loads.push_back(row);
    const auto of_layer = [&](double MoeLayerRecord::*member) {
      return curve_of(run, recent[l].layer,
                      [l, member](const StepRecord& r) { return l < r.moe.size() ? r.moe[l].*member : std::nan(""); });
    };
    dropped.curves.push_back(of_layer(&MoeLayerRecord::drop_fraction));
    entropy.curves.push_back(of_layer(&MoeLayerRecord::router_entropy));
  }
  return "<h2>Experts</h2>\n" +
         inlined(shade_chart("Load of the experts in recent steps, in fair shares (darkest: 3 and more)", loads, 3)) +
         inlined(curve_chart(dropped)) + inlined(curve_chart(entropy));
}

std::string value_text(const json& value) {
  if (value.is_number_float()) return fmt::format("{:.6g}", value.get<double>());
  return value.is_string() ? value.get<std::string>() : value.dump();
}

/// What the summary of a finished run says of speed, memory and predictions.
std::string summary_html(const json& summary) {
  std::string html = "<h2>The whole run</h2>\n<table>\n";
  for (const char* key :
       {"steps", "tokens", "first_loss", "final_loss", "mean_loss_last_tenth", "tokens_per_second", "parameters",
        "flops_per_token", "share_of_roof", "ranks", "threads_per_rank", "expert_ranks", "precision", "device"}) {
    if (summary.contains(key)) html += row_html(key, value_text(summary[key]));
  }
  const json memory = summary.value("memory", json::object());
  for (const auto& [name, values] : memory.items()) html += row_html(name, value_text(values));
  html += "</table>\n";
  const json session = summary.value("last_session", json::object());
  const json prediction = session.value("prediction", json::object());
  if (!prediction.contains("part_seconds")) return html;
  BarChart chart{.title = "Time of a step", .unit = "s", .marker_name = "", .parts = {}, .bars = {}};
  StackedBar predicted{"predicted", {}, {}}, measured{"measured", {}, {}};
  for (const auto& [part, seconds] : prediction["part_seconds"].items()) {
    chart.parts.push_back(part);
    predicted.parts.push_back(seconds["predicted"]);
    measured.parts.push_back(seconds["measured"]);
  }
  chart.bars = {measured, predicted};
  html += "<h2>Predicted and measured</h2>\n" + inlined(bar_chart(chart)) + "<table>\n";
  for (const char* key : {"machine", "predicted_step_seconds", "measured_step_seconds", "predicted_over_measured"}) {
    html += row_html(key, value_text(prediction[key]));
  }
  for (const auto& [name, counts] : prediction["collectives_of_rank_0_per_step"].items()) {
    html +=
        row_html(name + ", bytes a step, predicted and measured",
                 fmt::format("{} and {}", value_text(counts["predicted_bytes"]), value_text(counts["measured_bytes"])));
  }
  return html + "</table>\n";
}

constexpr const char* kStyle =
    "body{font-family:sans-serif;max-width:1040px;margin:2em auto;color:#222}"
    "table{border-collapse:collapse}th,td{text-align:left;padding:2px 12px 2px 0;font-weight:normal}"
    "th{color:#555}figure{margin:1em 0}svg{max-width:100%;height:auto}pre{background:#f4f4f4;padding:1em}";

}  // namespace

bool has_training(const std::string& dir) { return std::filesystem::exists(RunPaths{dir}.metrics()); }

std::string run_report_html(const std::string& dir) {
  const RunView run = read_run(dir);
  const RunPaths paths{dir};
  std::string html = fmt::format(
      "<!DOCTYPE html>\n<html lang=\"en\"><head><meta charset=\"utf-8\"><title>{0}</title><style>{1}</style></head>\n"
      "<body>\n<h1>{0}</h1>\n<pre>{2}</pre>\n",
      escaped(dir), kStyle, escaped(run_text(run, 100)));
  if (!run.records.empty()) html += "<h2>Training</h2>\n" + step_plots(run) + expert_plots(run);
  const json summary = json::parse(read_file(paths.summary()), nullptr, false);
  if (summary.is_object()) html += summary_html(summary);
  if (has_evaluation(dir)) {
    html += "<h2>Evaluation</h2>\n" + inlined(evaluation_report_svg(read_evaluation_report(dir)));
  }
  return html + "<h2>Deck</h2>\n<pre>" + escaped(read_file(paths.deck())) + "</pre>\n</body></html>\n";
}

}  // namespace flanmoe
