// How the choices of a question are listed in a prompt.
#pragma once

#include <string>
#include <vector>

#include "data/text.hpp"

namespace flanmoe::flan {

/// A list is a heading, and for each choice a separator, a marker and an end: "OPTIONS:\n(A) red;\n(B) blue;".
struct OptionStyle {
  std::string heading = "OPTIONS:";
  std::string before = "\n";  // each choice
  enum class Marker { fixed, letter, number, roman } marker = Marker::fixed;
  std::string open = "-", close;  // around the letter or number; a fixed marker is `open` alone
  std::string end;                // of each choice

  /// Whether the markers tell the choices apart: then they are what an answer says.
  bool names_choices() const { return marker != Marker::fixed; }
};

/// Headings, separators, markers and ends vary from prompt to prompt.
OptionStyle draw_style(Random& random);
/// "(A)", "-", "iv." of choice i.
std::string marker_of(const OptionStyle& style, std::size_t i);
/// The list with a line end before it; empty without choices.
std::string option_list(const OptionStyle& style, const std::vector<std::string>& choices);

}  // namespace flanmoe::flan
