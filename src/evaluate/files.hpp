// Small files of a run folder: read with errors that name them, written so that a killed run leaves the old one.
#pragma once

#include <nlohmann/json.hpp>
#include <string>
#include <vector>

namespace flanmoe {

using Json = nlohmann::ordered_json;

/// The whole file; throws Error naming it when it cannot be read.
std::string read_text_file(const std::string& path);
/// One JSON value; throws Error naming the file and the place of the damage.
Json read_json_file(const std::string& path);
/// One JSON value a line. A last line without its newline (a run killed while writing) is left out.
std::vector<Json> read_json_lines(const std::string& path);
/// Member `key` of `object`; throws Error naming `path` and the key when it is missing or no number.
double number_in(const Json& object, const std::string& key, const std::string& path);
/// Writes to a name aside, then renames.
void publish_text_file(const std::string& path, const std::string& text);
/// Text of a JSON value; bytes that are no UTF-8 (a model may write any) become U+FFFD. indent -1: one line.
std::string json_text(const Json& value, int indent);

}  // namespace flanmoe
