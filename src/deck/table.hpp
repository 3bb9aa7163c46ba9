// The one parameter table: every deck key with its place in the Deck, unit, range or allowed values and one sentence.
// The parser, the checks, the printed deck, the help and the reference page are all made from it. Private to deck/.
#pragma once

#include <functional>
#include <limits>
#include <optional>
#include <span>
#include <string>
#include <variant>
#include <vector>

#include "deck/deck.hpp"

namespace flanmoe::deck_detail {

/// Allowed numbers. `open` excludes the end itself.
struct Range {
  double low = -std::numeric_limits<double>::infinity();
  double high = std::numeric_limits<double>::infinity();
  bool low_open = false;
  bool high_open = false;

  bool contains(double value) const;
  /// "at least 1", "above 0", "from 0 to 1", "from 0 to below 1"; empty when every number is allowed.
  std::string text() const;
};

/// Where a value lives inside a Deck.
using Place = std::variant<std::string*, std::int64_t*, double*, bool*>;

/// Binds a table row to a member of a section.
struct Member {
  template <class Section, class Value>
  Member(Section Deck::*section, Value Section::*value)
      : place_in([section, value](Deck& deck) { return Place(&((deck.*section).*value)); }) {}
  std::function<Place(Deck&)> place_in;
};

struct Parameter {
  std::string key;  // section.name
  Member member;
  std::string unit;                  // empty when it has none
  Range range;                       // of numbers
  std::vector<std::string> choices;  // allowed texts; empty when any text is allowed
  bool required = false;             // a text that must not be empty
  std::string sentence;

  std::string section() const { return key.substr(0, key.find('.')); }
  std::string name() const { return key.substr(key.find('.') + 1); }
  /// What a value must be: "an integer at least 1", "one of relu, gated_gelu".
  std::string expected() const;
  std::string type() const;
};

/// All parameters, in the order in which they are printed; sections are contiguous.
const std::vector<Parameter>& parameter_table();
/// What each section is about, in table order.
struct SectionNote {
  std::string name, sentence;
};
const std::vector<SectionNote>& section_notes();

/// The row of a key, or null.
const Parameter* find_parameter(const std::string& key);
/// Sets the member from text; the reason when the text is not allowed ("an integer at least 1"), nothing when it was
/// set.
std::optional<std::string> set_from_text(Deck& deck, const Parameter& parameter, const std::string& text);
/// The member as text that set_from_text reads back to the same value.
std::string value_text(const Deck& deck, const Parameter& parameter);

/// Defaults that a named model brings along, for keys that the user did not set.
struct PresetValue {
  std::string key, value;
};
struct Preset {
  std::string name, sentence;
  std::vector<PresetValue> values;
};
const std::vector<Preset>& presets();

/// The candidate with the smallest edit distance (insert, delete, replace, swap neighbours).
std::string nearest_name(const std::string& wrong, std::span<const std::string> candidates);
/// The key nearest to a wrong one; a right name in the wrong section counts as near.
std::string nearest_key(const std::string& wrong);
std::string nearest_section(const std::string& wrong);

/// Problems found so far; throws them all at once.
class Problems {
 public:
  void add(const std::string& line) { lines_.push_back(line); }
  bool empty() const { return lines_.empty(); }
  /// Throws UsageError with a count and one problem a line, when there is any.
  void throw_if_any(const std::string& subject) const;

 private:
  std::vector<std::string> lines_;
};

}  // namespace flanmoe::deck_detail
