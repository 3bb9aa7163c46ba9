#include "exchange/json_file.hpp"

#include <set>
#include <vector>

#include "base/error.hpp"
#include "evaluate/files.hpp"

namespace flanmoe {

nlohmann::json parse_json(const std::string& text, const std::string& where) {
  std::vector<std::set<std::string>> members;  // of the objects that are open
  const auto check = [&](int depth, nlohmann::json::parse_event_t event, nlohmann::json& value) {
    using Event = nlohmann::json::parse_event_t;
    if (depth > 16) fail("{}: nested deeper than 16", where);
    if (event == Event::object_start) members.emplace_back();
    if (event == Event::object_end) members.pop_back();
    if (event == Event::key && !members.back().insert(value.get<std::string>()).second) {
      fail("{}: '{}' stands twice", where, value.get<std::string>());
    }
    return true;
  };
  try {
    return nlohmann::json::parse(text, check);
  } catch (const nlohmann::json::exception& error) {
    fail("{}: {}", where, error.what());
  }
}

nlohmann::json read_json(const std::string& path) { return parse_json(read_text_file(path), path); }

}  // namespace flanmoe
