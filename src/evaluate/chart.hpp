// Charts as SVG text: curves, stacked bars, a map of shades. Colours: Okabe and Ito's, told apart by colour-blind
// people; curves differ in their dashes too, so that a chart survives printing in grey.
#pragma once

#include <optional>
#include <string>
#include <utility>
#include <vector>

namespace flanmoe {

struct Curve {
  std::string name;
  std::vector<std::pair<double, double>> points;
  bool marked = false;  // a mark at every point: few of them, measured
};
struct CurveChart {
  std::string title, x_label, y_label;
  std::vector<Curve> curves;
  std::optional<double> low_y, high_y;  // of the axis; otherwise the range of the data
};
/// Points that are not finite are left out. At most about 500 points a curve are drawn, means of their neighbours.
std::string curve_chart(const CurveChart& chart);

struct StackedBar {
  std::string name;
  std::vector<double> parts;     // one a part
  std::optional<double> marker;  // a line across the bar's length
};
struct BarChart {
  std::string title, unit, marker_name;
  std::vector<std::string> parts;
  std::vector<StackedBar> bars;
};
std::string bar_chart(const BarChart& chart);

struct ShadeRow {
  std::string name;
  std::vector<double> values;
};
/// A cell a value; white is 0, the darkest shade is `most` and above. Values show when pointed at.
std::string shade_chart(const std::string& title, const std::vector<ShadeRow>& rows, double most);

}  // namespace flanmoe
