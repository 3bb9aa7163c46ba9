// The deck as text: resolved deck, hash, help of keys, and the reference page in input/.
#include "base/error.hpp"
#include "deck/table.hpp"

namespace flanmoe {
namespace {

using namespace deck_detail;

std::string default_text(const Parameter& parameter) {
  const std::string text = value_text(Deck(), parameter);
  return text.empty() ? "(empty)" : text;
}

/// The allowed values in a cell of the reference page.
std::string allowed_text(const Parameter& parameter) {
  if (!parameter.choices.empty()) return fmt::format("{}", fmt::join(parameter.choices, ", "));
  const std::string bounds = parameter.range.text();
  if (!bounds.empty()) return bounds;
  return parameter.required ? "not empty" : "";
}

std::string describe(const Parameter& parameter) {
  std::string text = fmt::format("{} = {}\n    {}", parameter.key, default_text(parameter), parameter.sentence);
  text += fmt::format("\n    {}{}", parameter.expected(), parameter.unit.empty() ? "" : ", in " + parameter.unit);
  for (const Preset& preset : presets())
    for (const PresetValue& entry : preset.values)
      if (entry.key == parameter.key) text += fmt::format("\n    preset {}: {}", preset.name, entry.value);
  return text + "\n";
}

std::string section_reference(const SectionNote& note) {
  std::string text = fmt::format("\n## [{}]\n\n{}\n\n", note.name, note.sentence);
  text += "| key | type | default | unit | allowed | meaning |\n|---|---|---|---|---|---|\n";
  for (const Parameter& parameter : parameter_table()) {
    if (parameter.section() != note.name) continue;
    text += fmt::format("| `{}` | {} | {} | {} | {} | {} |\n", parameter.key, parameter.type(),
                        fmt::format("`{}`", default_text(parameter)), parameter.unit, allowed_text(parameter),
                        parameter.sentence);
  }
  return text;
}

std::string preset_reference() {
  std::string text =
      "\n## Presets\n\n`model.preset` changes these defaults; a key that is set wins over the preset.\n\n";
  text += "| preset | model | defaults |\n|---|---|---|\n";
  for (const Preset& preset : presets()) {
    std::vector<std::string> values;
    for (const PresetValue& entry : preset.values) values.push_back(fmt::format("`{} = {}`", entry.key, entry.value));
    text += fmt::format("| `{}` | {} | {} |\n", preset.name, preset.sentence, fmt::join(values, "<br>"));
  }
  return text;
}

}  // namespace

std::string print_deck(const Deck& deck) {
  std::string text, section;
  for (const Parameter& parameter : parameter_table()) {
    if (parameter.section() != section) {
      text += fmt::format("{}[{}]\n", section.empty() ? "" : "\n", parameter.section());
      section = parameter.section();
    }
    const std::string value = value_text(deck, parameter);
    text += fmt::format("{} ={}{}\n", parameter.name(), value.empty() ? "" : " ", value);
  }
  return text;
}

std::uint64_t hash_deck(const Deck& deck) {
  std::uint64_t hash = 0xcbf29ce484222325u;  // FNV-1a, 64 bits
  for (const unsigned char byte : print_deck(deck)) hash = (hash ^ byte) * 0x100000001b3u;
  return hash;
}

std::string describe_keys(const std::string& key) {
  if (!key.empty()) {
    const Parameter* parameter = find_parameter(key);
    if (!parameter) usage_fail("unknown key {}; nearest is {}", key, nearest_key(key));
    return describe(*parameter);
  }
  std::string text;
  for (const Parameter& parameter : parameter_table()) text += describe(parameter);
  return text;
}

std::string deck_reference() {
  std::string text = "<!-- Made by `make docs` from src/deck/table.cpp; do not edit. -->\n# The input deck\n\n";
  text +=
      "A deck is an INI file: `[section]`, `key = value`, and comments from `#` to the end of the line. Any key can "
      "be\n"
      "overridden on the command line, which wins:\n\n"
      "    mpirun -n 2 build/flanmoe input/tutorial.ini --run.steps=50 --parallel.expert=1\n\n"
      "`--check` validates a deck without running it, `--print` shows it with every default and preset filled in, and\n"
      "`--help KEY` explains one key. A key that is unknown, set twice, of the wrong type or out of range stops the "
      "run\n"
      "before anything is written; all problems are listed at once, with file, line and the nearest valid name.\n"
      "`true`, `yes`, `on`, `1` and `false`, `no`, `off`, `0` are the two values of a switch.\n";
  for (const SectionNote& note : section_notes()) text += section_reference(note);
  return text + preset_reference();
}

}  // namespace flanmoe
