// JSON with the line of every example, so that errors can name it.
#pragma once

#include <cstdint>
#include <nlohmann/json.hpp>
#include <string>
#include <string_view>
#include <vector>

#include "data/formats/input.hpp"

namespace flanmoe::formats {

using Json = nlohmann::json;

/// One JSON object on a line. Throws Error naming the line.
Json parse_object_line(const std::string& line, const std::string& where);

struct JsonFile {
  Json value;
  std::vector<std::int64_t> lines;  // of the objects that are elements of the list asked for
};
/// A whole file. `list` names the key of the top object whose elements get lines; empty: the file itself is the list.
JsonFile parse_json_file(Input& input, const std::string& list);
/// The elements of the list, with `where` of each.
const Json& list_of(const JsonFile& file, const std::string& list, const std::string& name);

/// Members of an object. Each throws Error "WHERE: expected KEY to be ..., found ...".
const Json& member(const Json& object, const char* key, const std::string& where);
std::string text_member(const Json& object, const char* key, const std::string& where);
std::vector<std::string> texts_member(const Json& object, const char* key, const std::string& where);
std::int64_t integer_member(const Json& object, const char* key, const std::string& where);

}  // namespace flanmoe::formats
