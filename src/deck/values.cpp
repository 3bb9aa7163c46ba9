// Values of the table as text and back, ranges in words, and the search for the nearest valid name.
#include <algorithm>
#include <charconv>
#include <cmath>

#include "base/error.hpp"
#include "deck/table.hpp"

namespace flanmoe::deck_detail {
namespace {

/// The whole text as a number, or nothing.
template <class Number>
std::optional<Number> number_from(const std::string& text) {
  Number value{};
  const char* end = text.data() + text.size();
  const auto [stop, error] = std::from_chars(text.data(), end, value);
  if (error != std::errc() || stop != end) return std::nullopt;
  return value;
}

std::optional<bool> flag_from(const std::string& text) {
  if (text == "true" || text == "yes" || text == "on" || text == "1") return true;
  if (text == "false" || text == "no" || text == "off" || text == "0") return false;
  return std::nullopt;
}

/// Reads one kind of value; false when the text is not allowed.
struct Setter {
  const Parameter& parameter;
  const std::string& text;

  bool operator()(std::string* place) const {
    const auto& choices = parameter.choices;
    if (!choices.empty() && std::find(choices.begin(), choices.end(), text) == choices.end()) return false;
    if (parameter.required && text.empty()) return false;
    if (text.find_first_of("#\n\r") != std::string::npos) return false;  // could not be written to a deck
    *place = text;
    return true;
  }
  bool operator()(bool* place) const {
    const auto value = flag_from(text);
    if (value) *place = *value;
    return value.has_value();
  }
  template <class Number>
  bool operator()(Number* place) const {
    const auto value = number_from<Number>(text);
    if (!value || !std::isfinite(double(*value)) || !parameter.range.contains(double(*value))) return false;
    *place = *value;
    return true;
  }
};

Place place_of(Deck& deck, const Parameter& parameter) { return parameter.member.place_in(deck); }

}  // namespace

bool Range::contains(double value) const {
  return (low_open ? value > low : value >= low) && (high_open ? value < high : value <= high);
}

std::string Range::text() const {
  const bool has_low = std::isfinite(low), has_high = std::isfinite(high);
  if (has_low && has_high)
    return fmt::format("{} {} to {}{}", low_open ? "above" : "from", low, high_open ? "below " : "", high);
  if (has_low) return fmt::format("{} {}", low_open ? "above" : "at least", low);
  if (has_high) return fmt::format("{} {}", high_open ? "below" : "at most", high);
  return "";
}

std::string Parameter::type() const {
  Deck deck;
  struct Name {
    std::string operator()(const std::string*) const { return "text"; }
    std::string operator()(const std::int64_t*) const { return "integer"; }
    std::string operator()(const double*) const { return "number"; }
    std::string operator()(const bool*) const { return "true or false"; }
  };
  return std::visit(Name(), member.place_in(deck));
}

std::string Parameter::expected() const {
  if (!choices.empty()) return fmt::format("one of {}", fmt::join(choices, ", "));
  const std::string kind = type();
  if (kind == "text") return required ? "a text that is not empty and has no '#'" : "a text without '#'";
  if (kind == "true or false") return kind;
  const std::string bounds = range.text();
  return fmt::format("{} {}{}{}", kind == "integer" ? "an" : "a", kind, bounds.empty() ? "" : " ", bounds);
}

const Parameter* find_parameter(const std::string& key) {
  for (const Parameter& parameter : parameter_table())
    if (parameter.key == key) return &parameter;
  return nullptr;
}

std::optional<std::string> set_from_text(Deck& deck, const Parameter& parameter, const std::string& text) {
  if (std::visit(Setter{parameter, text}, place_of(deck, parameter))) return std::nullopt;
  std::string reason = fmt::format("expected {}, found '{}'", parameter.expected(), text);
  if (!parameter.choices.empty() && !text.empty())
    reason += fmt::format("; nearest is {}", nearest_name(text, parameter.choices));
  return reason;
}

std::string value_text(const Deck& deck, const Parameter& parameter) {
  struct Text {
    std::string operator()(const std::string* place) const { return *place; }
    std::string operator()(const bool* place) const { return *place ? "true" : "false"; }
    std::string operator()(const std::int64_t* place) const { return fmt::format("{}", *place); }
    std::string operator()(const double* place) const { return fmt::format("{}", *place); }  // shortest exact form
  };
  Deck copy = deck;
  return std::visit(Text(), place_of(copy, parameter));
}

namespace {

/// Edit distance with insert, delete, replace and swap of neighbours, each of cost 1.
std::size_t edit_distance(const std::string& a, const std::string& b) {
  std::vector<std::vector<std::size_t>> cost(a.size() + 1, std::vector<std::size_t>(b.size() + 1));
  for (std::size_t i = 0; i <= a.size(); ++i) {
    for (std::size_t j = 0; j <= b.size(); ++j) {
      if (i == 0 || j == 0) {
        cost[i][j] = i + j;
        continue;
      }
      const std::size_t replace = cost[i - 1][j - 1] + (a[i - 1] == b[j - 1] ? 0 : 1);
      cost[i][j] = std::min({cost[i - 1][j] + 1, cost[i][j - 1] + 1, replace});
      if (i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1])
        cost[i][j] = std::min(cost[i][j], cost[i - 2][j - 2] + 1);
    }
  }
  return cost.back().back();
}

}  // namespace

std::string nearest_name(const std::string& wrong, std::span<const std::string> candidates) {
  FLANMOE_EXPECT(!candidates.empty(), "no names to choose from");
  return *std::min_element(candidates.begin(), candidates.end(), [&](const std::string& a, const std::string& b) {
    return edit_distance(wrong, a) < edit_distance(wrong, b);
  });
}

std::string nearest_key(const std::string& wrong) {
  const std::string name = wrong.substr(wrong.rfind('.') + 1);  // all of it when there is no dot
  const auto distance = [&](const Parameter& parameter) {
    return std::min(edit_distance(wrong, parameter.key), edit_distance(name, parameter.name()) + 1);
  };
  const auto& table = parameter_table();
  return std::min_element(table.begin(), table.end(),
                          [&](const Parameter& a, const Parameter& b) { return distance(a) < distance(b); })
      ->key;
}

std::string nearest_section(const std::string& wrong) {
  std::vector<std::string> names;
  for (const SectionNote& note : section_notes()) names.push_back(note.name);
  return nearest_name(wrong, names);
}

void Problems::throw_if_any(const std::string& subject) const {
  if (lines_.empty()) return;
  throw UsageError(fmt::format("{}: {} problem{}\n  {}", subject, lines_.size(), lines_.size() == 1 ? "" : "s",
                               fmt::join(lines_, "\n  ")));
}

}  // namespace flanmoe::deck_detail
