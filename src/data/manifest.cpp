#include "data/manifest.hpp"

#include <filesystem>
#include <fstream>

#include "base/error.hpp"
#include "base/log.hpp"

namespace flanmoe {

namespace {

namespace fs = std::filesystem;
constexpr int kFormat = 1;

nlohmann::json empty_content() { return {{"format", kFormat}, {"steps", nlohmann::json::object()}}; }

}  // namespace

Manifest::Manifest(std::string folder) : folder_(std::move(folder)), content_(empty_content()) {
  const std::string path = folder_ + "/manifest.json";
  if (!fs::exists(path)) return;
  try {
    std::ifstream file(path);
    auto content = nlohmann::json::parse(file);
    if (content.at("format") == kFormat && content.at("steps").is_object()) content_ = std::move(content);
  } catch (const nlohmann::json::exception& error) {
    log_info("{} cannot be read and is made anew: {}", path, error.what());
  }
}

bool Manifest::is_done(const std::string& step, const std::string& inputs) const {
  const std::lock_guard lock(mutex_);
  const auto& steps = content_["steps"];
  if (!steps.contains(step) || steps[step].value("inputs", "") != inputs) return false;
  std::error_code missing;
  const auto bytes = fs::file_size(folder_ + "/" + steps[step].value("file", ""), missing);
  return !missing && bytes == steps[step].value("bytes", std::uintmax_t(0));
}

void Manifest::record(const std::string& step, const std::string& inputs, const std::string& file, nlohmann::json facts,
                      const std::string& owner) {
  const std::lock_guard lock(mutex_);
  auto& recorded = content_["steps"][step] = {
      {"inputs", inputs}, {"file", file}, {"bytes", fs::file_size(folder_ + "/" + file)}, {"facts", std::move(facts)}};
  if (!owner.empty()) recorded["owner"] = owner;
  write();
}

nlohmann::json Manifest::facts(const std::string& step) const {
  const std::lock_guard lock(mutex_);
  return content_.at("steps").at(step).at("facts");
}

void Manifest::keep_only(const std::map<std::string, std::string>& file_of_step) {
  const std::lock_guard lock(mutex_);
  nlohmann::json kept = nlohmann::json::object();
  for (const auto& [step, record] : content_["steps"].items()) {
    if (file_of_step.contains(step)) {
      kept[step] = record;
    } else {
      std::error_code ignored;
      fs::remove(folder_ + "/" + record.value("file", ""), ignored);
    }
  }
  content_["steps"] = std::move(kept);
  write();
}

std::vector<std::string> Manifest::own(const std::string& owner, const std::set<std::string>& steps,
                                       const Stale& stale) {
  const std::lock_guard lock(mutex_);
  std::vector<std::string> removed;
  nlohmann::json kept = nlohmann::json::object();
  for (auto& [step, record] : content_["steps"].items()) {
    const bool named = steps.contains(step);
    if (named) record["owner"] = owner;
    if (!named && record.value("owner", "") == owner && stale(step, record.at("facts"))) {
      const std::string file = record.value("file", "");
      std::error_code error;
      fs::remove(folder_ + "/" + file, error);
      if (!error) {
        removed.push_back(file);
        continue;
      }
      log_warning("{}/{}: cannot be removed and stays recorded: {}", folder_, file, error.message());
    }
    kept[step] = std::move(record);
  }
  content_["steps"] = std::move(kept);
  write();
  return removed;
}

void Manifest::set(const std::string& key, nlohmann::json value) {
  const std::lock_guard lock(mutex_);
  content_[key] = std::move(value);
  write();
}

void Manifest::write() const {
  const std::string path = folder_ + "/manifest.json", aside = path + ".partial";
  {
    std::ofstream file(aside);
    file << content_.dump(1) << '\n';
    if (!file.flush()) fail("{}: cannot be written", aside);
  }
  fs::rename(aside, path);
}

}  // namespace flanmoe
