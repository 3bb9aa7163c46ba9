// A drawing as SVG text: the few marks that charts need, with escaped text and short numbers.
#pragma once

#include <string>
#include <utility>
#include <vector>

namespace flanmoe {

using Point = std::pair<double, double>;  // pixels, y downwards

/// Text as it may stand in SVG and HTML, attributes included.
std::string escaped(const std::string& text);

class Svg {
 public:
  Svg(double width, double height) : width_(width), height_(height) {}

  /// style: SVG attributes, such as `stroke="#000" stroke-width="2"`.
  void line(Point from, Point to, const std::string& style);
  void rectangle(Point corner, double width, double height, const std::string& style, const std::string& tooltip = "");
  void polyline(const std::vector<Point>& points, const std::string& style);
  /// anchor: start, middle or end.
  void text(Point at, const std::string& text, double size, const std::string& anchor, const std::string& style = "");
  /// Text turned to read upwards, centred at the point.
  void upward_text(Point at, const std::string& text, double size);

  std::string str() const;

 private:
  double width_, height_;
  std::string body_;
};

/// Steps of 1, 2 or 5 times a power of ten that cover [low, high] with at most `most` + 1 marks.
std::vector<double> axis_ticks(double low, double high, int most);

/// Four characters at most for axis marks: "0.5", "40", "1.5k".
std::string short_number(double value);

}  // namespace flanmoe
