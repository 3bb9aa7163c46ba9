#include "data/flan/options.hpp"

#include <array>

#include "base/error.hpp"

namespace flanmoe::flan {
namespace {

using Marker = OptionStyle::Marker;

struct MarkerStyle {
  Marker marker;
  const char *open, *close;
};

const std::vector<std::string>& headings() {
  static const std::vector<std::string> all = {"",
                                               "",
                                               "OPTIONS:",
                                               "OPTIONS:",
                                               "Options:",
                                               "Choices:",
                                               "Possible answers:",
                                               "The candidates are:",
                                               "One of these is right:",
                                               "Choose one:",
                                               "Choose from the list:",
                                               "Answer with one of these:",
                                               "What can be answered:",
                                               "Take your pick:",
                                               "Which of these?",
                                               "The answer is among these:"};
  return all;
}

const std::vector<MarkerStyle>& marker_styles() {
  static const std::vector<MarkerStyle> all = {
      {Marker::fixed, "-", ""},   {Marker::fixed, "*", ""},   {Marker::fixed, "+", ""},  {Marker::fixed, "--", ""},
      {Marker::fixed, "[-]", ""}, {Marker::letter, "(", ")"}, {Marker::letter, "", "."}, {Marker::letter, "", ")"},
      {Marker::letter, "[", "]"}, {Marker::number, "(", ")"}, {Marker::number, "", "."}, {Marker::number, "", ")"},
      {Marker::number, "[", "]"}, {Marker::roman, "(", ")"},  {Marker::roman, "", "."},
  };
  return all;
}

std::string roman(std::size_t n) {
  constexpr std::array<std::pair<std::size_t, const char*>, 9> kDigits = {
      {{100, "c"}, {90, "xc"}, {50, "l"}, {40, "xl"}, {10, "x"}, {9, "ix"}, {5, "v"}, {4, "iv"}, {1, "i"}}};
  std::string out;
  for (const auto& [value, digits] : kDigits) {
    for (; n >= value; n -= value) out += digits;
  }
  return out;
}

}  // namespace

OptionStyle draw_style(Random& random) {
  OptionStyle style;
  style.heading = random.pick(headings());
  style.before.assign(1, random.below(4) == 0 ? ' ' : '\n');
  const MarkerStyle& marker = random.pick(marker_styles());
  style.marker = marker.marker;
  style.open = marker.open;
  style.close = marker.close;
  static const std::vector<std::string> ends = {"", "", ";", "."};
  style.end = random.pick(ends);
  return style;
}

std::string marker_of(const OptionStyle& style, std::size_t i) {
  switch (style.marker) {
    case Marker::fixed: return style.open;
    case Marker::letter: {
      // A .. Z, then AA, AB, ...
      const std::size_t page = i / 26;
      const std::string first = page > 0 ? std::string(1, char('A' + (page - 1) % 26)) : "";
      return fmt::format("{}{}{}{}", style.open, first, char('A' + i % 26), style.close);
    }
    case Marker::number: return fmt::format("{}{}{}", style.open, i + 1, style.close);
    case Marker::roman: return fmt::format("{}{}{}", style.open, roman(i + 1), style.close);
  }
  return "";
}

std::string option_list(const OptionStyle& style, const std::vector<std::string>& choices) {
  if (choices.empty()) return "";
  std::string out = fmt::format("\n{}", style.heading);
  for (std::size_t i = 0; i < choices.size(); ++i) {
    // Without a heading the list begins right after the line end.
    const bool bare = i == 0 && style.heading.empty();
    out += fmt::format("{}{} {}{}", bare ? "" : style.before, marker_of(style, i), choices[i], style.end);
  }
  return out;
}

}  // namespace flanmoe::flan
