#include "data/templates.hpp"

#include <set>

#include "base/error.hpp"
#include "data/sections.hpp"
#include "data/text.hpp"

namespace flanmoe {

namespace {

bool parse_yes_no(std::string_view value, const std::string& where) {
  if (value != "yes" && value != "no") fail("{}: expected yes or no, found \"{}\"", where, value);
  return value == "yes";
}

/// What a template is unless it says otherwise.
struct Defaults {
  std::string cue = "Answer:", head;
};

void set_file_key(TemplateFile& file, Defaults& defaults, std::string_view key, const std::string& value,
                  const std::string& where) {
  if (key == "category") {
    file.category = value;
  } else if (key == "cue") {
    defaults.cue = value == "none" ? "" : value;
  } else if (key == "head") {
    defaults.head = value;
  } else if (key == "separator") {
    file.separator = value;
  } else if (key == "held_out") {
    file.held_out = parse_yes_no(value, where);
  } else if (key == "finetune") {
    file.finetune = parse_yes_no(value, where);
  } else {
    fail("{}: unknown key \"{}\"; expected category, cue, head, separator, held_out or finetune", where, key);
  }
}

void set_template_key(Template& current, std::string_view key, const std::string& value, const std::string& where) {
  if (key == "input") {
    current.input = value;
  } else if (key == "target") {
    current.target = value;
  } else if (key == "cue") {
    current.cue = value == "none" ? "" : value;
  } else if (key == "head") {
    current.head = value == "none" ? "" : value;
  } else if (key == "chain_of_thought") {
    current.chain_of_thought = parse_yes_no(value, where);
  } else if (key == "inverted") {
    current.inverted = parse_yes_no(value, where);
  } else if (key == "explained") {
    current.explained = parse_yes_no(value, where);
  } else {
    fail("{}: unknown key \"{}\"; expected input, target, cue, head, chain_of_thought, inverted or explained", where,
         key);
  }
}

bool fields_are_closed(std::string_view text) {
  bool open = false;
  for (const char c : text) {
    if (c != '{' && c != '}') continue;
    if (open == (c == '{')) return false;
    open = !open;
  }
  return !open;
}

void check_complete(const TemplateFile& file, std::size_t least) {
  if (file.category.empty()) fail("{}: the category is missing", file.path);
  if (file.templates.size() < least) {
    fail("{}: expected at least {} templates, found {}", file.path, least, file.templates.size());
  }
  std::set<std::string> names;
  for (const auto& each : file.templates) {
    if (each.input.empty()) fail("{}:{}: template \"{}\" has no input", file.path, each.line, each.name);
    if (!names.insert(each.name).second) fail("{}:{}: a second template \"{}\"", file.path, each.line, each.name);
  }
}

std::string joined_options(const std::vector<std::string>& choices) {
  std::string out;
  for (std::size_t i = 0; i < choices.size(); ++i) {
    if (i > 0) out += i + 1 == choices.size() ? " or " : ", ";
    out += choices[i];
  }
  return out;
}

std::string listed_options(const std::vector<std::string>& choices) {
  std::string out;
  for (const auto& choice : choices) out += (out.empty() ? "- " : " - ") + choice;
  return out;
}

/// Text of a field; nullptr when the item has none of that name.
bool find_field(const Item& item, std::string_view name, std::string& text) {
  for (const auto& [field, value] : item.fields) {
    if (field == name) {
      text = value;
      return true;
    }
  }
  if (name == "answer") {
    text = item.answer;
  } else if (name == "options" && !item.choices.empty()) {
    text = joined_options(item.choices);
  } else if (name == "list" && !item.choices.empty()) {
    text = listed_options(item.choices);
  } else {
    return false;
  }
  return true;
}

}  // namespace

TemplateFile parse_templates(std::string_view text, const std::string& path, const std::string& task,
                             std::size_t least) {
  TemplateFile file;
  file.path = path;
  file.task = task;
  Defaults defaults;
  for (const Section& section : parse_sections(text, path)) {
    const bool is_template = section.line > 0;
    if (is_template) {
      Template next;
      next.name = section.name;
      next.cue = defaults.cue;
      next.head = defaults.head;
      next.line = section.line;
      file.templates.push_back(std::move(next));
    }
    for (const SectionEntry& entry : section.entries) {
      const std::string where = fmt::format("{}:{}", path, entry.line);
      if (!fields_are_closed(entry.value)) {
        fail("{}: a field is opened but not closed: \"{}\"", where, entry.value);
      }
      if (is_template) {
        set_template_key(file.templates.back(), entry.key, entry.value, where);
      } else {
        set_file_key(file, defaults, entry.key, entry.value, where);
      }
    }
  }
  check_complete(file, least);
  return file;
}

std::string fill(const TemplateFile& file, const Template& chosen, const std::string& pattern, const Item& item) {
  std::string out, value;
  for (std::size_t at = 0; at < pattern.size();) {
    const std::size_t open = pattern.find('{', at);
    out.append(pattern, at, open - at);
    if (open == std::string::npos) break;
    const std::size_t close = pattern.find('}', open);
    const std::string name = pattern.substr(open + 1, close - open - 1);
    if (!find_field(item, name, value)) {
      std::string known = "answer";
      for (const auto& field : item.fields) known += ", " + field.first;
      if (!item.choices.empty()) known += ", options, list";
      fail("{}:{}: template \"{}\" uses the field {{{}}}; the task has {}", file.path, chosen.line, chosen.name, name,
           known);
    }
    out += value;
    at = close + 1;
  }
  return out;
}

}  // namespace flanmoe
