#include "data/formats/json_text.hpp"

#include <algorithm>
#include <iterator>

namespace flanmoe::formats {
namespace {

/// Counts the lines that the parser has consumed; copies share the count.
class LineCounter {
 public:
  using iterator_category = std::input_iterator_tag;
  using value_type = char;
  using difference_type = std::ptrdiff_t;
  using pointer = const char*;
  using reference = const char&;
  LineCounter(const char* at, std::int64_t* lines) : at_(at), lines_(lines) {}
  reference operator*() const { return *at_; }
  LineCounter& operator++() {
    if (*at_++ == '\n') ++*lines_;
    return *this;
  }
  LineCounter operator++(int) {
    LineCounter old = *this;
    ++*this;
    return old;
  }
  bool operator==(const LineCounter& other) const { return at_ == other.at_; }
  bool operator!=(const LineCounter& other) const { return at_ != other.at_; }

 private:
  const char* at_;
  std::int64_t* lines_;
};

/// The bare words NaN and Infinity, which some released files hold outside of texts, become null.
std::string without_bare_words(std::string text) {
  bool quoted = false;
  for (std::size_t i = 0; i < text.size(); ++i) {
    if (quoted) {
      if (text[i] == '\\') ++i;
      quoted = i >= text.size() || text[i] != '"';
    } else if (text[i] == '"') {
      quoted = true;
    } else if (text.compare(i, 3, "NaN") == 0) {
      text.replace(i, 3, "null");
    } else if (text.compare(i, 8, "Infinity") == 0) {
      if (i > 0 && text[i - 1] == '-') text[i - 1] = ' ';
      text.replace(i, 8, "null");
    }
  }
  return text;
}

[[noreturn]] void wrong_member(const char* key, const char* expected, const Json& found, const std::string& where) {
  fail("{}: expected \"{}\" to be {}, found {}", where, key, expected,
       shown(found.dump(-1, ' ', true, Json::error_handler_t::replace)));
}

}  // namespace

Json parse_object_line(const std::string& line, const std::string& where) {
  try {
    Json json = Json::parse(line);
    if (!json.is_object()) fail("{}: expected a JSON object, found {}", where, shown(line));
    return json;
  } catch (const Json::exception& error) {
    fail("{}: expected a JSON object, found \"{}\": {}", where, shown(line), error.what());
  }
}

JsonFile parse_json_file(Input& input, const std::string& list) {
  const std::string text = without_bare_words(input.rest());
  JsonFile file;
  std::int64_t line = 1;
  std::string key;
  const int depth_wanted = list.empty() ? 1 : 2;
  const auto watch = [&](int depth, Json::parse_event_t event, Json& parsed) {
    if (event == Json::parse_event_t::key && depth == 1) key = parsed.get<std::string>();
    if (event == Json::parse_event_t::object_start && depth == depth_wanted && (list.empty() || key == list)) {
      file.lines.push_back(line);
    }
    return true;
  };
  try {
    file.value = Json::parse(LineCounter(text.data(), &line), LineCounter(text.data() + text.size(), &line), watch);
  } catch (const Json::exception& error) {
    fail("{}: expected JSON, found: {}", input.where(line), error.what());
  }
  return file;
}

const Json& list_of(const JsonFile& file, const std::string& list, const std::string& name) {
  const Json& found = list.empty() ? file.value : member(file.value, list.c_str(), name);
  if (!found.is_array()) fail("{}: expected a list of objects{}", name, list.empty() ? "" : " in \"" + list + "\"");
  for (std::size_t i = 0; i < found.size(); ++i) {
    if (!found[i].is_object()) {
      fail("{}: expected a list of objects, found element {} to be {}", name, i,
           shown(found[i].dump(-1, ' ', true, Json::error_handler_t::replace)));
    }
  }
  if (file.lines.size() != found.size()) fail("{}: expected the key \"{}\" once, found it again", name, list);
  return found;
}

const Json& member(const Json& object, const char* key, const std::string& where) {
  const auto at = object.is_object() ? object.find(key) : object.end();
  if (!object.is_object() || at == object.end()) {
    fail("{}: expected the key \"{}\", found {}", where, key,
         shown(object.dump(-1, ' ', true, Json::error_handler_t::replace)));
  }
  return *at;
}

std::string text_member(const Json& object, const char* key, const std::string& where) {
  const Json& found = member(object, key, where);
  if (!found.is_string()) wrong_member(key, "text", found, where);
  return found.get<std::string>();
}

std::vector<std::string> texts_member(const Json& object, const char* key, const std::string& where) {
  const Json& found = member(object, key, where);
  const bool good =
      found.is_array() && std::all_of(found.begin(), found.end(), [](const Json& each) { return each.is_string(); });
  if (!good) wrong_member(key, "a list of texts", found, where);
  return found.get<std::vector<std::string>>();
}

std::int64_t integer_member(const Json& object, const char* key, const std::string& where) {
  const Json& found = member(object, key, where);
  if (!found.is_number_integer()) wrong_member(key, "a whole number", found, where);
  return found.get<std::int64_t>();
}

}  // namespace flanmoe::formats
