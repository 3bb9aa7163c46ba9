// JSON that other programs wrote, read strictly.
#pragma once

#include <nlohmann/json.hpp>
#include <string>

namespace flanmoe {

/// One value; refuses bad syntax, members that stand twice in an object, and nesting deeper than 16. `where` begins the
/// message.
nlohmann::json parse_json(const std::string& text, const std::string& where);
nlohmann::json read_json(const std::string& path);

}  // namespace flanmoe
