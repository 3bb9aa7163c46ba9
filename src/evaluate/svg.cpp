#include "evaluate/svg.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>

namespace flanmoe {

std::string escaped(const std::string& text) {
  std::string out;
  for (const char c : text) {
    switch (c) {
      case '&': out += "&amp;"; break;
      case '<': out += "&lt;"; break;
      case '>': out += "&gt;"; break;
      case '"': out += "&quot;"; break;
      default: out += c;
    }
  }
  return out;
}

void Svg::line(Point from, Point to, const std::string& style) {
  body_ += fmt::format("<line x1=\"{:.1f}\" y1=\"{:.1f}\" x2=\"{:.1f}\" y2=\"{:.1f}\" {}/>\n", from.first, from.second,
                       to.first, to.second, style);
}

void Svg::rectangle(Point corner, double width, double height, const std::string& style, const std::string& tooltip) {
  body_ += fmt::format("<rect x=\"{:.1f}\" y=\"{:.1f}\" width=\"{:.1f}\" height=\"{:.1f}\" {}>", corner.first,
                       corner.second, width, height, style);
  if (!tooltip.empty()) body_ += "<title>" + escaped(tooltip) + "</title>";
  body_ += "</rect>\n";
}

void Svg::polyline(const std::vector<Point>& points, const std::string& style) {
  body_ += "<polyline fill=\"none\" points=\"";
  for (const auto& [x, y] : points) body_ += fmt::format("{:.1f},{:.1f} ", x, y);
  body_ += "\" " + style + "/>\n";
}

void Svg::text(Point at, const std::string& text, double size, const std::string& anchor, const std::string& style) {
  body_ += fmt::format("<text x=\"{:.1f}\" y=\"{:.1f}\" font-size=\"{}\" text-anchor=\"{}\" {}>{}</text>\n", at.first,
                       at.second, size, anchor, style, escaped(text));
}

void Svg::upward_text(Point at, const std::string& text, double size) {
  body_ += fmt::format(
      "<text transform=\"translate({:.1f} {:.1f}) rotate(-90)\" font-size=\"{}\" "
      "text-anchor=\"middle\">{}</text>\n",
      at.first, at.second, size, escaped(text));
}

std::string Svg::str() const {
  return fmt::format(
      "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n"
      "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{0}\" height=\"{1}\" viewBox=\"0 0 {0} {1}\" "
      "font-family=\"sans-serif\" fill=\"#222\">\n"
      "<rect width=\"{0}\" height=\"{1}\" fill=\"#fff\"/>\n{2}</svg>\n",
      width_, height_, body_);
}

std::vector<double> axis_ticks(double low, double high, int most) {
  if (!(high > low)) high = low + 1;
  double step = std::pow(10.0, std::floor(std::log10((high - low) / most)));
  for (const double factor : {1.0, 2.0, 5.0, 10.0}) {
    if ((high - low) / (step * factor) <= most) {
      step *= factor;
      break;
    }
  }
  std::vector<double> ticks;
  for (double k = std::floor(low / step); (k - 1) * step < high * (1 - 1e-12) || ticks.size() < 2; k += 1) {
    ticks.push_back(k * step);
  }
  return ticks;
}

std::string short_number(double value) {
  if (std::abs(value) >= 1000) return fmt::format("{:g}k", std::round(value / 10) / 100);
  return fmt::format("{:g}", std::round(value * 100) / 100);
}

}  // namespace flanmoe
