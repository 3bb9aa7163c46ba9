// The picture of the evaluations of a run folder. Colours: Okabe and Ito's, told apart by colour-blind people; curves
// differ in their dashes and bars carry their numbers, so the picture survives printing in grey.
#include <fmt/format.h>

#include <algorithm>
#include <array>

#include "evaluate/evaluation_report.hpp"
#include "evaluate/svg.hpp"

namespace flanmoe {
namespace {

constexpr double picture_width = 1000, label_width = 400, number_width = 110, margin = 20;
constexpr double bar_left = label_width + margin, bar_width = picture_width - bar_left - number_width - margin;
constexpr double row_height = 18, title_height = 34, axis_height = 24, curve_height = 260;
constexpr std::array<const char*, 6> colours = {"#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9"};
constexpr std::array<const char*, 4> dashes = {"", " stroke-dasharray=\"7 3\"", " stroke-dasharray=\"2 3\"",
                                               " stroke-dasharray=\"9 3 2 3\""};
constexpr const char* grid_style = "stroke=\"#ddd\" stroke-width=\"1\"";
constexpr const char* ink_style = "stroke=\"#222\" stroke-width=\"1.2\"";

double bar_x(double percent) { return bar_left + bar_width * std::clamp(percent, 0.0, 100.0) / 100; }

double height_of(const BarGroup& group) {
  return title_height + double(group.bars.size()) * row_height + axis_height + 10;
}

/// Names longer than the column lose their middle.
std::string shortened(const std::string& name) {
  constexpr std::size_t longest = 52;
  if (name.size() <= longest) return name;
  return fmt::format("{}…{}", name.substr(0, longest / 2), name.substr(name.size() - longest / 2));
}

void draw_bar(Svg& svg, const ScoreBar& bar, double top) {
  const double middle = top + row_height / 2;
  svg.text({bar_left - 8, middle + 4}, shortened(bar.name), 12, "end");
  if (!bar.score) {
    svg.text({bar_left + 6, middle + 4}, "not measured", 11, "start", "fill=\"#777\"");
    return;
  }
  const double error = bar.standard_error.value_or(0);
  svg.rectangle({bar_left, top + 3}, bar_x(*bar.score) - bar_left, row_height - 6,
                fmt::format("fill=\"{}\" fill-opacity=\"0.75\"", colours[0]),
                fmt::format("{}: {:.2f} ± {:.2f} %", bar.name, *bar.score, error));
  const double low = bar_x(*bar.score - error), high = bar_x(*bar.score + error);
  svg.line({low, middle}, {high, middle}, ink_style);
  for (const double x : {low, high}) svg.line({x, middle - 3}, {x, middle + 3}, ink_style);
  if (bar.chance) {
    const double x = bar_x(*bar.chance);
    svg.line({x, top + 1}, {x, top + row_height - 1}, "stroke=\"#D55E00\" stroke-width=\"2\"");
  }
  svg.text({picture_width - margin, middle + 4}, fmt::format("{:.1f} ±{:.1f}", *bar.score, error), 12, "end");
}

void draw_group(Svg& svg, const BarGroup& group, double top) {
  svg.text({margin, top + 20}, group.title, 15, "start", "font-weight=\"bold\"");
  const double first = top + title_height, bottom = first + double(group.bars.size()) * row_height;
  for (int percent = 0; percent <= 100; percent += 20) {
    svg.line({bar_x(percent), first}, {bar_x(percent), bottom}, grid_style);
    svg.text({bar_x(percent), bottom + 15}, fmt::format("{}%", percent), 11, "middle", "fill=\"#555\"");
  }
  for (std::size_t i = 0; i < group.bars.size(); ++i) draw_bar(svg, group.bars[i], first + double(i) * row_height);
}

/// One line of text a curve, right of the panel.
void draw_curves(Svg& svg, const std::vector<ScoreCurve>& curves, double top) {
  svg.text({margin, top + 20}, "scores while training", 15, "start", "font-weight=\"bold\"");
  const double left = 70, right = picture_width - 330, first = top + title_height, bottom = first + curve_height;
  double last_step = 1, low = 100, high = 0;
  for (const auto& curve : curves) {
    last_step = std::max(last_step, curve.step.back());
    low = std::min(low, *std::min_element(curve.score.begin(), curve.score.end()));
    high = std::max(high, *std::max_element(curve.score.begin(), curve.score.end()));
  }
  const auto ticks = axis_ticks(low, std::max(high, low + 1), 5);
  const auto x_of = [&](double step) { return left + (right - left) * step / last_step; };
  const auto y_of = [&](double score) {
    return bottom - (bottom - first) * (score - ticks.front()) / (ticks.back() - ticks.front());
  };
  for (const double tick : ticks) {
    svg.line({left, y_of(tick)}, {right, y_of(tick)}, grid_style);
    svg.text({left - 6, y_of(tick) + 4}, fmt::format("{}%", short_number(tick)), 11, "end");
  }
  for (const double tick : axis_ticks(0, last_step, 5)) {
    if (tick > last_step) continue;
    svg.line({x_of(tick), bottom}, {x_of(tick), bottom + 4}, ink_style);
    svg.text({x_of(tick), bottom + 17}, short_number(tick), 11, "middle");
  }
  svg.line({left, bottom}, {right, bottom}, ink_style);
  svg.text({(left + right) / 2, bottom + 34}, "optimizer step", 12, "middle", "fill=\"#555\"");
  for (std::size_t c = 0; c < curves.size(); ++c) {
    const std::string style = fmt::format("stroke=\"{}\" stroke-width=\"2\"{}", colours[c % colours.size()],
                                          dashes[c / colours.size() % dashes.size()]);
    std::vector<Point> points;
    for (std::size_t i = 0; i < curves[c].step.size(); ++i) {
      const double x = x_of(curves[c].step[i]), score = curves[c].score[i], error = curves[c].standard_error[i];
      points.emplace_back(x, y_of(score));
      const auto inside = [&](double value) { return y_of(std::clamp(value, ticks.front(), ticks.back())); };
      svg.line({x, inside(score - error)}, {x, inside(score + error)},
               fmt::format("stroke=\"{}\" stroke-width=\"1\"", colours[c % colours.size()]));
      svg.rectangle({x - 2.5, y_of(score) - 2.5}, 5, 5, fmt::format("fill=\"{}\"", colours[c % colours.size()]),
                    fmt::format("{}, step {}: {:.2f} ± {:.2f} %", curves[c].name, curves[c].step[i], score, error));
    }
    svg.polyline(points, style);
    const double y = first + 8 + double(c) * 18;
    svg.line({right + 16, y}, {right + 44, y}, style);
    svg.text({right + 50, y + 4}, shortened(curves[c].name), 12, "start");
  }
}

}  // namespace

std::string evaluation_report_svg(const EvaluationReport& report) {
  const auto groups = report.evaluation ? bar_groups(*report.evaluation) : std::vector<BarGroup>();
  const auto curves = score_curves(report.over_steps);
  const double curves_height =
      curves.empty() ? 0 : title_height + std::max(curve_height + 54, double(curves.size()) * 18 + 20);
  double height = 64 + curves_height;
  for (const auto& group : groups) height += height_of(group);
  Svg svg(picture_width, height);
  svg.text({margin, 26}, report.folder, 17, "start", "font-weight=\"bold\"");
  svg.text({margin, 46}, "score in percent with one standard error; upright line: random guessing", 12, "start",
           "fill=\"#555\"");
  double top = 58;
  if (!curves.empty()) draw_curves(svg, curves, top);
  top += curves_height;
  for (const auto& group : groups) {
    draw_group(svg, group, top);
    top += height_of(group);
  }
  return svg.str();
}

}  // namespace flanmoe
