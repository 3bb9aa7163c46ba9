// The picture of the comparison. Colours: Okabe and Ito's, told apart by colour-blind people; the dense model is dashed
// or hatched by its outline as well, so the picture survives printing in grey.
#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <numeric>

#include "evaluate/report.hpp"
#include "evaluate/svg.hpp"

namespace flanmoe {
namespace {

constexpr double picture_width = 1200, margin = 70;
constexpr std::array<const char*, 2> colours = {"#0072B2", "#E69F00"};
constexpr std::array<const char*, 2> dashes = {"", " stroke-dasharray=\"7 3\""};
constexpr const char* grid_style = "stroke=\"#ddd\" stroke-width=\"1\"";
constexpr const char* axis_style = "stroke=\"#444\" stroke-width=\"1\"";

struct Panel {
  double x, y, width, height;           // pixels
  double low_x, high_x, low_y, high_y;  // data
  Point at(double data_x, double data_y) const {
    return {x + width * (data_x - low_x) / (high_x - low_x), y + height * (high_y - data_y) / (high_y - low_y)};
  }
};

/// Grid lines, marks and frame; no marks on x when `marks_x` is false.
void draw_axes(Svg& svg, const Panel& p, bool marks_x) {
  for (const double tick : axis_ticks(p.low_y, p.high_y, 6)) {
    if (tick < p.low_y - 1e-9 || tick > p.high_y + 1e-9) continue;
    const double y = p.at(p.low_x, tick).second;
    svg.line({p.x, y}, {p.x + p.width, y}, grid_style);
    svg.text({p.x - 6, y + 4}, short_number(tick), 11, "end");
  }
  for (const double tick : axis_ticks(p.low_x, p.high_x, 4)) {
    if (!marks_x || tick < p.low_x || tick > p.high_x) continue;
    const double x = p.at(tick, p.low_y).first;
    svg.line({x, p.y + p.height}, {x, p.y + p.height + 4}, axis_style);
    svg.text({x, p.y + p.height + 17}, short_number(tick), 11, "middle");
  }
  svg.line({p.x, p.y}, {p.x, p.y + p.height}, axis_style);
  svg.line({p.x, p.y + p.height}, {p.x + p.width, p.y + p.height}, axis_style);
}

/// Mean over a window that ends at each step, a twentieth of the run long.
std::vector<double> smoothed(const std::vector<double>& values) {
  const std::size_t window = std::max<std::size_t>(1, values.size() / 20);
  std::vector<double> out(values.size());
  double sum = 0;
  for (std::size_t i = 0; i < values.size(); ++i) {
    sum += values[i];
    if (i >= window) sum -= values[i - window];
    out[i] = sum / double(std::min(i + 1, window));
  }
  return out;
}

void draw_curve(Svg& svg, const Panel& p, const TrainingRun& run, std::size_t model) {
  const auto smooth = smoothed(run.loss);
  std::vector<Point> raw, line;
  for (std::size_t i = 0; i < run.loss.size(); ++i) {
    raw.push_back(p.at(run.step[i], run.loss[i]));
    line.push_back(p.at(run.step[i], smooth[i]));
  }
  svg.polyline(raw, fmt::format("stroke=\"{}\" stroke-width=\"0.7\" stroke-opacity=\"0.3\"", colours[model]));
  svg.polyline(line, fmt::format("stroke=\"{}\" stroke-width=\"2\"{}", colours[model], dashes[model]));
}

void draw_losses(Svg& svg, const Report& report, double top) {
  constexpr std::array<const char*, 4> titles = {"pretraining", "instruction tuning", "finetuning, from pretraining",
                                                 "finetuning, from instruction tuning"};
  constexpr double gap = 44, height = 210;
  const double width = (picture_width - margin - 30 - 3 * gap) / 4;
  svg.text({margin, top - 14}, "Training loss (nats per target token)", 15, "start", "font-weight=\"bold\"");
  for (std::size_t stage = 0; stage < report_stages.size(); ++stage) {
    Panel p{margin + double(stage) * (width + gap), top + 18, width, height, 0, 1, 0, 1};
    double low = INFINITY, high = -INFINITY;
    for (const auto& runs : report.training) {
      const auto [least, most] = std::minmax_element(runs[stage].loss.begin(), runs[stage].loss.end());
      low = std::min(low, *least);
      high = std::max(high, *most);
      p.high_x = std::max(p.high_x, runs[stage].step.back());
    }
    const auto ticks = axis_ticks(low, high, 6);
    p.low_y = ticks.front();
    p.high_y = std::max(ticks.back(), high);
    draw_axes(svg, p, true);
    for (std::size_t m = 0; m < report_models.size(); ++m) draw_curve(svg, p, report.training[m][stage], m);
    svg.text({p.x + p.width / 2, top + 8}, titles[stage], 12, "middle");
    svg.text({p.x + p.width / 2, p.y + p.height + 34}, "optimizer step", 11, "middle", "fill=\"#555\"");
  }
  svg.upward_text({22, top + 18 + height / 2}, "loss (nats/token)", 12);
}

/// "task: instruction-tuned, finetuned" -> its parts, one a line.
std::vector<std::string> label_lines(const Comparison& row, const std::string& task) {
  std::string text = row.title;
  if (text.starts_with(task + ": ")) text = text.substr(task.size() + 2);
  std::vector<std::string> lines;
  for (std::size_t comma = 0; (comma = text.find(", ")) != std::string::npos; text = text.substr(comma + 2)) {
    lines.push_back(text.substr(0, comma + 1));
  }
  lines.push_back(text);
  lines.push_back(row.setup == "baseline" ? "baseline" : "set-up " + row.setup);
  return lines;
}

void draw_bar(Svg& svg, const Panel& p, double x, double width, const Comparison& row, std::size_t model) {
  const auto& share = row.cells[model].main();
  if (!share) return;
  const double value = 100 * share->value, error = 100 * share->standard_error;
  const Point top = p.at(0, value), base = p.at(0, 0);
  const std::string outline = model == 0 ? "stroke=\"none\"" : "stroke=\"#7a5500\" stroke-dasharray=\"4 2\"";
  svg.rectangle({x, top.second}, width, base.second - top.second,
                fmt::format("fill=\"{}\" {}", colours[model], outline),
                fmt::format("{}, {}: {:.1f} ± {:.1f} %", row.title, report_models[model], value, error));
  const double middle = x + width / 2, high = p.at(0, std::min(100.0, value + error)).second;
  const double low = p.at(0, std::max(0.0, value - error)).second;
  svg.line({middle, high}, {middle, low}, axis_style);
  for (const double y : {high, low}) svg.line({middle - 4, y}, {middle + 4, y}, axis_style);
  svg.text({middle, high - 5}, fmt::format("{:.1f}", value), 10.5, "middle");
  if (row.cells[model].acc && row.cells[model].chance) {
    const double y = p.at(0, 100 * *row.cells[model].chance).second;
    svg.line({x - 3, y}, {x + width + 3, y}, "stroke=\"#000\" stroke-width=\"2.5\"");
  }
}

double highest_bar(const Report& report) {
  double high = 10;
  for (const auto& row : report.comparisons) {
    for (const auto& cell : row.cells) {
      if (cell.main()) high = std::max(high, 100 * (cell.main()->value + cell.main()->standard_error));
      if (cell.chance) high = std::max(high, 100 * *cell.chance);
    }
  }
  return std::min(110.0, 20 * std::ceil((high + 6) / 20));  // room for the figure above a bar
}

void draw_scores(Svg& svg, const Report& report, double top) {
  svg.text({margin, top - 14}, "Scores on test examples (black mark: chance; whiskers: one standard error)", 15,
           "start", "font-weight=\"bold\"");
  const Panel p{margin, top + 6, picture_width - margin - 30, 230, 0, 1, 0, highest_bar(report)};
  draw_axes(svg, p, false);
  svg.upward_text({22, p.y + p.height / 2}, "score (% of examples)", 12);
  const double group = p.width / double(std::max<std::size_t>(1, report.comparisons.size()));
  const double bar = std::min(40.0, group / 3.2);
  double first_of_task = -1;
  for (std::size_t i = 0; i < report.comparisons.size(); ++i) {
    const Comparison& row = report.comparisons[i];
    const double middle = p.x + group * (double(i) + 0.5);
    for (std::size_t m = 0; m < report_models.size(); ++m) {
      draw_bar(svg, p, m == 0 ? middle - bar - 2 : middle + 2, bar, row, m);
    }
    double y = p.y + p.height + 16;
    for (const auto& line : label_lines(row, report.finetune_task)) {
      svg.text({middle, y}, line, 11, "middle");
      y += 14;
    }
    const bool ranked = row.cells[0].acc || row.cells[1].acc;
    svg.text({middle, y}, ranked ? "acc" : "exact match", 11, "middle", "fill=\"#555\"");
    if (first_of_task < 0 && row.name == "pretrained_only") first_of_task = p.x + group * double(i);
  }
  if (first_of_task < 0) return;
  const double y = p.y + p.height + 78;
  svg.line({first_of_task + 12, y}, {p.x + p.width - 12, y}, axis_style);
  svg.text({(first_of_task + p.x + p.width) / 2, y + 15}, "one task: " + report.finetune_task, 11.5, "middle");
}

/// White (no token) over blue (the even share) to dark purple (three times as much and more).
std::string load_colour(double load) {
  constexpr std::array<std::array<double, 3>, 4> stops = {
      {{247, 251, 255}, {107, 174, 214}, {33, 90, 160}, {40, 10, 80}}};
  const double at = std::clamp(load, 0.0, 2.999);
  const auto i = std::size_t(at);
  std::array<int, 3> rgb{};
  for (std::size_t c = 0; c < 3; ++c) rgb[c] = int(stops[i][c] + (at - double(i)) * (stops[i + 1][c] - stops[i][c]));
  return fmt::format("#{:02x}{:02x}{:02x}", rgb[0], rgb[1], rgb[2]);
}

constexpr double cell_height = 24;

void draw_load(Svg& svg, const ExpertLoad& load, double top) {
  svg.text({margin, top - 14}, "Expert load of the MoE model, end of instruction tuning (share of tokens, 1 = even)",
           15, "start", "font-weight=\"bold\"");
  const double left = margin + 90;
  std::size_t experts = 1;
  for (const auto& row : load.load) experts = std::max(experts, row.size());
  const double width = std::min(70.0, (picture_width - left - 200) / double(experts));
  for (std::size_t layer = 0; layer < load.layers.size(); ++layer) {
    const double y = top + cell_height * double(layer);
    svg.text({left - 8, y + 16}, load.layers[layer], 11, "end");
    for (std::size_t e = 0; e < load.load[layer].size(); ++e) {
      const double value = load.load[layer][e], x = left + width * double(e);
      svg.rectangle({x, y}, width - 1, cell_height - 1, "fill=\"" + load_colour(value) + "\"",
                    fmt::format("{}, expert {}: {:.2f}", load.layers[layer], e, value));
      if (width < 30) continue;
      svg.text({x + width / 2, y + 16}, fmt::format("{:.2f}", value), 11, "middle",
               value > 1.3 ? "fill=\"#fff\"" : "fill=\"#222\"");
    }
  }
  const double below = top + cell_height * double(load.layers.size());
  for (std::size_t e = 0; e < experts; ++e) {
    svg.text({left + width * (double(e) + 0.5), below + 14}, std::to_string(e), 11, "middle");
  }
  svg.text({left + width * double(experts) / 2, below + 30}, "expert", 11, "middle", "fill=\"#555\"");
  const double scale = left + width * double(experts) + 40;
  for (int i = 0; i <= 30; ++i) {
    svg.rectangle({scale + 3.0 * i, top}, 3.2, 14, "fill=\"" + load_colour(0.1 * i) + "\"");
  }
  for (int i = 0; i <= 3; ++i) svg.text({scale + 30.0 * i, top + 28}, i == 3 ? "≥3" : std::to_string(i), 11, "middle");
}

void draw_legend(Svg& svg) {
  constexpr std::array<const char*, 2> names = {"mixture of experts", "dense, equal work per token"};
  double x = 680;
  for (std::size_t m = 0; m < names.size(); ++m) {
    svg.line({x, 30}, {x + 34, 30}, fmt::format("stroke=\"{}\" stroke-width=\"5\"{}", colours[m], dashes[m]));
    svg.text({x + 42, 35}, names[m], 13, "start");
    x += 200;
  }
}

}  // namespace

std::string report_svg(const Report& report) {
  constexpr double losses_top = 86, scores_top = 400, load_top = 790;
  const double height = load_top + cell_height * double(report.load.layers.size()) + 50;
  Svg svg(picture_width, height);
  svg.text({margin, 36}, "Instruction tuning of an MoE model and its dense twin", 19, "start", "font-weight=\"bold\"");
  draw_legend(svg);
  draw_losses(svg, report, losses_top);
  draw_scores(svg, report, scores_top);
  draw_load(svg, report.load, load_top);
  return svg.str();
}

}  // namespace flanmoe
