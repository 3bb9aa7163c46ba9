#include "data/tutorial/templates.hpp"

#include <algorithm>
#include <set>

#include "base/error.hpp"

namespace flanmoe::tutorial {

namespace {

bool parse_yes_no(std::string_view value, const std::string& where) {
  if (value != "yes" && value != "no") fail("{}: expected yes or no, found \"{}\"", where, value);
  return value == "yes";
}

void set_file_key(TemplateFile& file, std::string& cue, std::string_view key, std::string_view value,
                  const std::string& where) {
  if (key == "category") {
    file.category = value;
  } else if (key == "cue") {
    cue = value;
  } else if (key == "separator") {
    file.separator = value;
  } else if (key == "held_out") {
    file.held_out = parse_yes_no(value, where);
  } else if (key == "finetune") {
    file.finetune = parse_yes_no(value, where);
  } else {
    fail("{}: unknown key \"{}\"; expected category, cue, separator, held_out or finetune", where, key);
  }
}

void set_template_key(Template& current, std::string_view key, std::string_view value, const std::string& where) {
  if (key == "input") {
    current.input = value;
  } else if (key == "target") {
    current.target = value;
  } else if (key == "cue") {
    current.cue = value == "none" ? std::string_view{} : value;
  } else if (key == "chain_of_thought") {
    current.chain_of_thought = parse_yes_no(value, where);
  } else {
    fail("{}: unknown key \"{}\"; expected input, target, cue or chain_of_thought", where, key);
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

void check_complete(const TemplateFile& file) {
  if (file.category.empty()) fail("{}: the category is missing", file.path);
  if (file.templates.size() < 4) fail("{}: expected at least 4 templates, found {}", file.path, file.templates.size());
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

TemplateFile parse_templates(std::string_view text, const std::string& path, const std::string& task) {
  TemplateFile file;
  file.path = path;
  file.task = task;
  std::string cue = "Answer:";
  int number = 0;
  for (const std::string& raw : split(text, '\n')) {
    const std::string where = fmt::format("{}:{}", path, ++number);
    const std::string_view line = trim(raw);
    if (line.empty() || line.front() == '#') continue;
    if (line.front() == '[') {
      if (line.back() != ']' || line.size() < 3) fail("{}: expected [name], found \"{}\"", where, line);
      Template next;
      next.name = line.substr(1, line.size() - 2);
      next.cue = cue;
      next.line = number;
      file.templates.push_back(std::move(next));
      continue;
    }
    const std::size_t equals = line.find('=');
    if (equals == std::string_view::npos) fail("{}: expected \"key = value\", found \"{}\"", where, line);
    const std::string_view key = trim(line.substr(0, equals)), value = trim(line.substr(equals + 1));
    if (value.empty()) fail("{}: \"{}\" has no value", where, key);
    if (!fields_are_closed(value)) fail("{}: a field is opened but not closed: \"{}\"", where, value);
    if (file.templates.empty()) {
      set_file_key(file, cue, key, value, where);
    } else {
      set_template_key(file.templates.back(), key, value, where);
    }
  }
  check_complete(file);
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

Prompt zero_shot_prompt(const TemplateFile& file, const Template& chosen, const Item& item) {
  return {fill(file, chosen, chosen.input, item), fill(file, chosen, chosen.target, item)};
}

Prompt few_shot_prompt(const TemplateFile& file, const Template& chosen, const Item& query,
                       const std::vector<const Item*>& exemplars) {
  const std::string cue = chosen.cue.empty() ? "" : " " + chosen.cue;
  std::string input;
  for (const Item* exemplar : exemplars) {
    const Prompt shown = zero_shot_prompt(file, chosen, *exemplar);
    input += shown.input + cue + " " + shown.target + " " + file.separator + " ";
  }
  const Prompt asked = zero_shot_prompt(file, chosen, query);
  return {input + asked.input + cue, asked.target};
}

std::vector<const Item*> choose_exemplars(const std::vector<const Item*>& from, const Item& query, std::size_t count,
                                          Random& random) {
  std::vector<const Item*> chosen;
  const auto usable = [&](const Item* item) {
    if (item->key == query.key) return false;
    return std::none_of(chosen.begin(), chosen.end(), [&](const Item* other) { return other->key == item->key; });
  };
  for (int attempt = 0; attempt < 100 && chosen.size() < count && !from.empty(); ++attempt) {
    const Item* item = random.pick(from);
    if (usable(item)) chosen.push_back(item);
  }
  return chosen;
}

Split split_by_key(const Items& items, std::size_t most_test) {
  std::vector<const Item*> first_of_key;
  std::set<std::string_view> keys;
  for (const auto& item : items) {
    if (keys.insert(item.key).second) first_of_key.push_back(&item);
  }
  const std::size_t tested = std::min(most_test, first_of_key.size() / 4);
  constexpr std::uint64_t kSplitSeed = 1;  // not that of the hash by which items were chosen
  std::sort(first_of_key.begin(), first_of_key.end(), [](const Item* a, const Item* b) {
    const auto hash_a = hash_text(a->key, kSplitSeed), hash_b = hash_text(b->key, kSplitSeed);
    return hash_a != hash_b ? hash_a < hash_b : a->key < b->key;
  });
  first_of_key.resize(tested);
  Split split;
  split.test = first_of_key;
  std::set<std::string_view> test_keys;
  for (const Item* item : first_of_key) test_keys.insert(item->key);
  for (const auto& item : items) {
    if (!test_keys.contains(item.key)) split.train.push_back(&item);
  }
  return split;
}

}  // namespace flanmoe::tutorial
