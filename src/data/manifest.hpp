// manifest.json: which steps are done, from which inputs, and what they made.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <mutex>
#include <nlohmann/json.hpp>
#include <set>
#include <string>
#include <vector>

namespace flanmoe {

/// Steps may be recorded from several threads. Every change is written at once, by rename.
class Manifest {
 public:
  /// Reads FOLDER/manifest.json when it is there; one that cannot be read counts as absent.
  explicit Manifest(std::string folder);
  /// True when the step was made from the same inputs and its file still has the recorded length.
  bool is_done(const std::string& step, const std::string& inputs) const;
  /// Records a step: its inputs, its file (relative to the folder), facts for people, and who makes it.
  void record(const std::string& step, const std::string& inputs, const std::string& file, nlohmann::json facts,
              const std::string& owner = "");
  nlohmann::json facts(const std::string& step) const;
  /// Removes steps that are not named here, with their files: they belong to tasks that no longer exist.
  void keep_only(const std::map<std::string, std::string>& file_of_step);
  using Stale = std::function<bool(const std::string& step, const nlohmann::json& facts)>;
  /// Makes the steps named here, as far as they are recorded, `owner`'s, and removes, with their files, the owner's
  /// other steps of which `stale` is true. Steps of other owners stay. Gives the removed files.
  std::vector<std::string> own(const std::string& owner, const std::set<std::string>& steps, const Stale& stale);
  void set(const std::string& key, nlohmann::json value);

 private:
  void write() const;

  std::string folder_;
  nlohmann::json content_;
  mutable std::mutex mutex_;
};

}  // namespace flanmoe
