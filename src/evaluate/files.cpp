#include "evaluate/files.hpp"

#include <cerrno>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <sstream>

#include "base/error.hpp"

namespace flanmoe {

std::string read_text_file(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  if (!file || std::filesystem::is_directory(path)) fail("{}: cannot be read: {}", path, std::strerror(errno));
  std::ostringstream text;
  text << file.rdbuf();
  if (file.bad()) fail("{}: reading failed: {}", path, std::strerror(errno));
  return text.str();
}

Json read_json_file(const std::string& path) {
  const std::string text = read_text_file(path);
  try {
    return Json::parse(text);
  } catch (const Json::exception& e) {
    fail("{}: no valid JSON: {}", path, e.what());
  }
}

std::vector<Json> read_json_lines(const std::string& path) {
  const std::string text = read_text_file(path);
  std::vector<Json> lines;
  for (std::size_t begin = 0, end = 0; (end = text.find('\n', begin)) != std::string::npos; begin = end + 1) {
    try {
      lines.push_back(Json::parse(text.begin() + std::ptrdiff_t(begin), text.begin() + std::ptrdiff_t(end)));
    } catch (const Json::exception& e) {
      fail("{}:{}: no valid JSON: {}", path, lines.size() + 1, e.what());
    }
  }
  return lines;
}

double number_in(const Json& object, const std::string& key, const std::string& path) {
  if (!object.is_object() || !object.contains(key)) fail("{}: \"{}\" is missing", path, key);
  const Json& value = object.at(key);
  if (!value.is_number()) fail("{}: \"{}\" must be a number, found {}", path, key, value.dump());
  return value.get<double>();
}

void publish_text_file(const std::string& path, const std::string& text) {
  const std::string aside = path + ".writing";
  {
    std::ofstream file(aside, std::ios::binary | std::ios::trunc);
    file << text;
    file.close();
    if (!file) fail("{}: cannot be written: {}", aside, std::strerror(errno));
  }
  std::error_code problem;
  std::filesystem::rename(aside, path, problem);
  if (problem) fail("{}: cannot be renamed to {}: {}", aside, path, problem.message());
}

std::string json_text(const Json& value, int indent) {
  return value.dump(indent, ' ', false, Json::error_handler_t::replace);
}

}  // namespace flanmoe
