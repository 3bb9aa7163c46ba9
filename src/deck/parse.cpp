// Reads a deck: Boost.Program_options splits the INI file and the command line into keys and values, a scan of the same
// lines gives the line numbers that Boost does not, and the table says what each value may be.
#include <algorithm>
#include <boost/program_options.hpp>
#include <filesystem>
#include <fstream>
#include <map>
#include <sstream>

#include "base/error.hpp"
#include "deck/table.hpp"

namespace flanmoe {
namespace {

using namespace deck_detail;
namespace po = boost::program_options;

/// One "key = value" as the user wrote it.
struct Setting {
  std::string key, value;
  std::string where;  // "deck.ini:12" or "command line"
};

const po::options_description& option_names() {
  static const po::options_description names = [] {
    po::options_description all;
    for (const Parameter& parameter : parameter_table())
      all.add_options()(parameter.key.c_str(), po::value<std::string>());
    return all;
  }();
  return names;
}

std::string trimmed(const std::string& text) {
  const auto first = text.find_first_not_of(" \t\r");
  if (first == std::string::npos) return "";
  return text.substr(first, text.find_last_not_of(" \t\r") - first + 1);
}

std::string read_text(const std::string& path) {
  std::ifstream file(path);
  std::ostringstream text;
  text << file.rdbuf();
  if (!file || std::filesystem::is_directory(path))
    usage_fail("{}: cannot be read; expected an input deck (an INI file)", path);
  return text.str();
}

/// What the lines of an INI file are, numbered from 1.
struct Scan {
  std::vector<int> setting_lines;     // lines with "key = value", in order
  std::vector<std::string> sections;  // unknown ones
  std::string readable;               // the text without the lines that Boost would stop at
};

Scan scan_lines(const std::string& path, const std::string& text, Problems& problems) {
  Scan scan;
  std::istringstream lines(text);
  std::string line;
  for (int number = 1; std::getline(lines, line); ++number) {
    const std::string content = trimmed(line.substr(0, line.find('#')));
    if (!content.empty() && content.front() == '[' && content.back() == ']') {
      const std::string section = content.substr(1, content.size() - 2);
      if (std::none_of(section_notes().begin(), section_notes().end(),
                       [&](const SectionNote& note) { return note.name == section; })) {
        problems.add(fmt::format("{}:{}: unknown section [{}]; nearest is [{}]", path, number, section,
                                 nearest_section(section)));
        scan.sections.push_back(section);
      }
    } else if (content.find('=') != std::string::npos) {
      scan.setting_lines.push_back(number);
    } else if (!content.empty()) {
      problems.add(
          fmt::format("{}:{}: expected [section], key = value or # comment, found '{}'", path, number, content));
      continue;
    }
    scan.readable += line + "\n";
  }
  return scan;
}

std::vector<Setting> read_settings(const std::string& path, const std::string& text, Problems& problems) {
  const Scan scan = scan_lines(path, text, problems);
  std::istringstream readable(scan.readable);
  const auto parsed = po::parse_config_file(readable, option_names(), true);
  FLANMOE_EXPECT(parsed.options.size() == scan.setting_lines.size(), "{}: {} settings parsed, {} lines have one", path,
                 parsed.options.size(), scan.setting_lines.size());
  std::vector<Setting> settings;
  for (std::size_t i = 0; i < parsed.options.size(); ++i) {
    const auto& option = parsed.options[i];
    const std::string section = option.string_key.substr(0, option.string_key.rfind('.'));
    if (std::find(scan.sections.begin(), scan.sections.end(), section) != scan.sections.end())
      continue;  // said already
    settings.push_back({option.string_key, option.value.empty() ? "" : option.value.front(),
                        fmt::format("{}:{}", path, scan.setting_lines[i])});
  }
  return settings;
}

std::vector<Setting> read_overrides(const std::vector<std::string>& overrides, Problems& problems) {
  std::vector<Setting> settings;
  for (const std::string& text : overrides) {
    const auto equals = text.find('=');
    if (text.rfind("--", 0) != 0 || equals == std::string::npos) {
      problems.add(fmt::format("command line: expected --section.key=value, found '{}'", text));
      continue;
    }
    if (equals + 1 == text.size()) {  // Boost takes an empty value for a missing one
      settings.push_back({text.substr(2, equals - 2), "", "command line"});
      continue;
    }
    using namespace po::command_line_style;
    const auto parsed = po::command_line_parser(std::vector<std::string>{text})
                            .options(option_names())
                            .style(allow_long | long_allow_adjacent)
                            .allow_unregistered()
                            .run();
    for (const auto& option : parsed.options)
      settings.push_back({option.string_key, trimmed(text.substr(equals + 1)), "command line"});
  }
  return settings;
}

/// Sets the keys of one source; `set_at` remembers where each was set.
void apply(Deck& deck, const std::vector<Setting>& settings, std::map<std::string, std::string>& set_at,
           Problems& problems) {
  for (const Setting& setting : settings) {
    const Parameter* parameter = find_parameter(setting.key);
    if (!parameter) {
      problems.add(
          fmt::format("{}: unknown key {}; nearest is {}", setting.where, setting.key, nearest_key(setting.key)));
      continue;
    }
    const auto [earlier, first] = set_at.emplace(setting.key, setting.where);
    if (!first) {
      problems.add(
          fmt::format("{}: {} is set twice, expected once; first at {}", setting.where, setting.key, earlier->second));
      continue;
    }
    if (const auto reason = set_from_text(deck, *parameter, setting.value))
      problems.add(fmt::format("{}: {}: {}", setting.where, setting.key, *reason));
  }
}

void apply_preset(Deck& deck, const std::map<std::string, std::string>& set_at) {
  for (const Preset& preset : presets()) {
    if (preset.name != deck.model.preset) continue;
    for (const PresetValue& entry : preset.values) {
      if (set_at.count(entry.key)) continue;
      const Parameter* parameter = find_parameter(entry.key);
      FLANMOE_EXPECT(parameter && !set_from_text(deck, *parameter, entry.value), "preset {} has no valid {} = {}",
                     preset.name, entry.key, entry.value);
    }
  }
}

}  // namespace

Deck parse_deck(const std::string& path, const std::vector<std::string>& overrides) {
  return parse_deck_text(path, read_text(path), overrides);
}

Deck parse_deck_text(const std::string& name, const std::string& text, const std::vector<std::string>& overrides) {
  Deck deck;
  Problems problems;
  std::map<std::string, std::string> set_in_file, set_by_override;
  apply(deck, read_settings(name, text, problems), set_in_file, problems);
  apply(deck, read_overrides(overrides, problems), set_by_override, problems);
  set_in_file.merge(set_by_override);
  apply_preset(deck, set_in_file);
  problems.throw_if_any(name);
  return deck;
}

}  // namespace flanmoe
