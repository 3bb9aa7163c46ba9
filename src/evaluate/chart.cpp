#include "evaluate/chart.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cmath>

#include "evaluate/svg.hpp"

namespace flanmoe {
namespace {

constexpr double kWidth = 760, kLeft = 70, kRight = 20, kTop = 60, kBottom = 44, kCurveHeight = 260, kRow = 22;
constexpr double kBarLeft = 190;
constexpr std::array<const char*, 9> kColours = {"#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7",
                                                 "#56B4E9", "#F0E442", "#888888", "#222222"};
constexpr std::array<const char*, 4> kDashes = {"", " stroke-dasharray=\"7 3\"", " stroke-dasharray=\"2 3\"",
                                                " stroke-dasharray=\"9 3 2 3\""};
constexpr const char* kGrid = "stroke=\"#ddd\" stroke-width=\"1\"";
constexpr const char* kAxis = "stroke=\"#444\" stroke-width=\"1\"";
constexpr std::size_t kMostPoints = 500;

std::string stroke(std::size_t i) {
  return fmt::format("stroke=\"{}\" stroke-width=\"1.8\"{}", kColours[i % kColours.size()],
                     kDashes[i % kDashes.size()]);
}

std::string fill(std::size_t i) { return fmt::format("fill=\"{}\"", kColours[i % kColours.size()]); }

/// The finite points, thinned to means of neighbours.
std::vector<Point> drawn_points(const Curve& curve) {
  std::vector<Point> finite;
  for (const auto& [x, y] : curve.points) {
    if (std::isfinite(x) && std::isfinite(y)) finite.emplace_back(x, y);
  }
  if (finite.size() <= kMostPoints) return finite;
  std::vector<Point> thin(kMostPoints);
  for (std::size_t i = 0; i < kMostPoints; ++i) {
    const std::size_t begin = i * finite.size() / kMostPoints, end = (i + 1) * finite.size() / kMostPoints;
    for (std::size_t j = begin; j < end; ++j) {
      thin[i].first += finite[j].first / double(end - begin);
      thin[i].second += finite[j].second / double(end - begin);
    }
  }
  return thin;
}

/// A range of data and where it is drawn.
struct Scale {
  double low, high, from, to;
  double at(double value) const { return from + (to - from) * (value - low) / (high - low); }
};

Scale scale_of(double low, double high, double from, double to) {
  if (!(high > low)) {
    if (std::abs(low) < 1e-30) return {0, 1, from, to};
    const double around = std::abs(low) * 0.1;
    low -= around;
    high += around;
  }
  return {low, high, from, to};
}

/// Names of curves or parts below the title, in the two rows that there is room for.
void draw_legend(Svg& svg, const std::vector<std::string>& names, bool filled) {
  double x = kLeft, y = 0;
  for (std::size_t i = 0; i < names.size(); ++i) {
    const double width = (filled ? 16 : 26) + 6.6 * double(names[i].size()) + 14;
    if (x + width > kWidth && x > kLeft) {
      if (y > 0) {
        svg.text({x, y + 36}, "...", 11, "start");
        return;
      }
      x = kLeft;
      y = 14;
    }
    if (filled) {
      svg.rectangle({x, y + 27}, 12, 10, fill(i));
    } else {
      svg.line({x, y + 32}, {x + 22, y + 32}, stroke(i));
    }
    svg.text({x + (filled ? 16 : 26), y + 36}, names[i], 11, "start");
    x += width;
  }
}

}  // namespace

std::string curve_chart(const CurveChart& chart) {
  std::vector<std::vector<Point>> curves;
  double low_x = INFINITY, high_x = -INFINITY, low_y = INFINITY, high_y = -INFINITY;
  for (const Curve& curve : chart.curves) {
    curves.push_back(drawn_points(curve));
    for (const auto& [x, y] : curves.back()) {
      low_x = std::min(low_x, x);
      high_x = std::max(high_x, x);
      low_y = std::min(low_y, y);
      high_y = std::max(high_y, y);
    }
  }
  Svg svg(kWidth, kTop + kCurveHeight + kBottom);
  svg.text({kLeft, 18}, chart.title, 14, "start", "font-weight=\"bold\"");
  if (low_x > high_x) {
    svg.text({kLeft, kTop + 20}, "nothing to draw", 12, "start");
    return svg.str();
  }
  const double bottom = kTop + kCurveHeight;
  const Scale x = scale_of(low_x, high_x, kLeft, kWidth - kRight);
  const Scale y = scale_of(chart.low_y.value_or(low_y), chart.high_y.value_or(high_y), bottom, kTop);
  for (const double tick : axis_ticks(y.low, y.high, 6)) {
    if (tick < y.low - 1e-12 || tick > y.high + 1e-12) continue;
    svg.line({kLeft, y.at(tick)}, {kWidth - kRight, y.at(tick)}, kGrid);
    svg.text({kLeft - 6, y.at(tick) + 4}, fmt::format("{:.4g}", tick), 11, "end");
  }
  for (const double tick : axis_ticks(x.low, x.high, 8)) {
    if (tick < x.low || tick > x.high) continue;
    svg.line({x.at(tick), bottom}, {x.at(tick), bottom + 4}, kAxis);
    svg.text({x.at(tick), bottom + 16}, short_number(tick), 11, "middle");
  }
  svg.line({kLeft, kTop}, {kLeft, bottom}, kAxis);
  svg.line({kLeft, bottom}, {kWidth - kRight, bottom}, kAxis);
  svg.text({(kLeft + kWidth) / 2, bottom + 34}, chart.x_label, 12, "middle");
  svg.upward_text({16, kTop + kCurveHeight / 2}, chart.y_label, 12);
  std::vector<std::string> names;
  for (std::size_t i = 0; i < curves.size(); ++i) {
    names.push_back(chart.curves[i].name);
    std::vector<Point> pixels;
    for (const auto& [px, py] : curves[i]) pixels.emplace_back(x.at(px), y.at(std::clamp(py, y.low, y.high)));
    svg.polyline(pixels, stroke(i));
    if (!chart.curves[i].marked) continue;
    for (std::size_t j = 0; j < pixels.size(); ++j) {
      svg.rectangle({pixels[j].first - 3, pixels[j].second - 3}, 6, 6, fill(i),
                    fmt::format("{}: {:.6g}, {:.6g}", names.back(), curves[i][j].first, curves[i][j].second));
    }
  }
  if (names.size() > 1) draw_legend(svg, names, false);
  return svg.str();
}

std::string bar_chart(const BarChart& chart) {
  double most = 0;
  for (const StackedBar& bar : chart.bars) {
    double sum = 0;
    for (const double part : bar.parts) sum += part;
    most = std::max({most, sum, bar.marker.value_or(0)});
  }
  const double bottom = kTop + kRow * double(chart.bars.size());
  Svg svg(kWidth, bottom + kBottom);
  svg.text({kLeft, 18}, chart.title, 14, "start", "font-weight=\"bold\"");
  draw_legend(svg, chart.parts, true);
  const Scale x = scale_of(0, most > 0 ? most * 1.02 : 1, kBarLeft, kWidth - kRight);
  for (const double tick : axis_ticks(0, x.high, 8)) {
    if (tick > x.high) continue;
    svg.line({x.at(tick), kTop}, {x.at(tick), bottom}, kGrid);
    svg.text({x.at(tick), bottom + 16}, fmt::format("{:.4g}", tick), 11, "middle");
  }
  for (std::size_t b = 0; b < chart.bars.size(); ++b) {
    const StackedBar& bar = chart.bars[b];
    const double top = kTop + kRow * double(b);
    svg.text({kBarLeft - 8, top + 15}, bar.name, 12, "end");
    double at = 0;
    for (std::size_t p = 0; p < bar.parts.size(); ++p) {
      const double end = at + bar.parts[p];
      svg.rectangle({x.at(at), top + 3}, x.at(end) - x.at(at), kRow - 6, fill(p),
                    fmt::format("{}, {}: {:.4g} {}", bar.name, chart.parts[p], bar.parts[p], chart.unit));
      at = end;
    }
    if (bar.marker) {
      svg.line({x.at(*bar.marker), top}, {x.at(*bar.marker), top + kRow}, "stroke=\"#000\" stroke-width=\"2.5\"");
    }
  }
  svg.text({kBarLeft, bottom + 34},
           chart.unit + (chart.marker_name.empty() ? std::string() : "; black line: " + chart.marker_name), 12,
           "start");
  return svg.str();
}

std::string shade_chart(const std::string& title, const std::vector<ShadeRow>& rows, double most) {
  std::size_t columns = 1;
  for (const ShadeRow& row : rows) columns = std::max(columns, row.values.size());
  const double cell = std::min(kRow, (kWidth - kBarLeft - kRight) / double(columns));
  Svg svg(kWidth, kTop + kRow * double(rows.size()));
  svg.text({kLeft, 18}, title, 14, "start", "font-weight=\"bold\"");
  for (std::size_t r = 0; r < rows.size(); ++r) {
    const double top = kTop + kRow * double(r) - 28;
    svg.text({kBarLeft - 8, top + 15}, rows[r].name, 12, "end");
    for (std::size_t c = 0; c < rows[r].values.size(); ++c) {
      const double value = rows[r].values[c];
      svg.rectangle({kBarLeft + cell * double(c), top}, cell, kRow - 2,
                    fmt::format("fill=\"#0072B2\" fill-opacity=\"{:.3f}\" stroke=\"#ccc\" stroke-width=\"0.5\"",
                                std::clamp(value / most, 0.0, 1.0)),
                    fmt::format("{}, expert {}: {:.3g}", rows[r].name, c, value));
    }
  }
  return svg.str();
}

}  // namespace flanmoe
