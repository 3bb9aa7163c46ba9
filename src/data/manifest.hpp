// manifest.json: which steps are done, from which inputs, and what they made.
#pragma once

#include <cstdint>
#include <map>
#include <mutex>
#include <nlohmann/json.hpp>
#include <string>

namespace flanmoe {

/// Steps may be recorded from several threads. Every change is written at once, by rename.
class Manifest {
 public:
  /// Reads FOLDER/manifest.json when it is there; one that cannot be read counts as absent.
  explicit Manifest(std::string folder);
  /// True when the step was made from the same inputs and its file still has the recorded length.
  bool is_done(const std::string& step, const std::string& inputs) const;
  /// Records a step: its inputs, its file (relative to the folder) and facts for people.
  void record(const std::string& step, const std::string& inputs, const std::string& file, nlohmann::json facts);
  nlohmann::json facts(const std::string& step) const;
  /// Removes steps that are not named here, with their files: they belong to tasks that no longer exist.
  void keep_only(const std::map<std::string, std::string>& file_of_step);
  void set(const std::string& key, nlohmann::json value);

 private:
  void write() const;

  std::string folder_;
  nlohmann::json content_;
  mutable std::mutex mutex_;
};

}  // namespace flanmoe
