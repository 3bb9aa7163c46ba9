#include "train/run_folder.hpp"

#include <fcntl.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstdio>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <map>
#include <memory>
#include <set>
#include <sstream>
#include <string_view>

#include "base/error.hpp"
#include "base/host.hpp"
#include "base/log.hpp"
#include "train/resources.hpp"

namespace flanmoe {
namespace {

// Changing these between two starts of one run leaves its training as it is (layout: within the rounding of sums);
// run.steps only with a schedule that does not look at it.
constexpr auto kFreeKeys = std::to_array<std::string_view>({"run.steps",
                                                            "run.dir",
                                                            "run.device",
                                                            "run.threads",
                                                            "run.watchdog_seconds",
                                                            "run.log_every",
                                                            "data.tokenizer",
                                                            "run.stop_after_minutes",
                                                            "run.stop_before_minutes",
                                                            "parallel.expert",
                                                            "batch.microbatch_rows",
                                                            "reduction.leaves",
                                                            "data.prefetch",
                                                            "moe.capacity_factor_eval",
                                                            "moe.buffer_factor",
                                                            "moe.packed_weights",
                                                            "moe.dispatch_chunks",
                                                            "checkpoint.every",
                                                            "checkpoint.keep",
                                                            "checkpoint.final",
                                                            "checkpoint.background",
                                                            "checkpoint.on_failure"});

bool is_free(const std::string& key) {
  return key.starts_with("evaluate.") || key.starts_with("plan.") || key.starts_with("faults.") ||
         std::find(kFreeKeys.begin(), kFreeKeys.end(), key) != kFreeKeys.end();
}

std::string trimmed(std::string_view text) {
  const auto first = text.find_first_not_of(" \t\r");
  if (first == std::string_view::npos) return "";
  return std::string(text.substr(first, text.find_last_not_of(" \t\r") - first + 1));
}

}  // namespace

std::map<std::string, std::string> deck_values(const std::string& deck) {
  std::map<std::string, std::string> values;
  std::string section;
  std::istringstream in(deck);
  for (std::string raw; std::getline(in, raw);) {
    const std::string line = trimmed(std::string_view(raw).substr(0, raw.find('#')));
    if (line.starts_with('[') && line.ends_with(']')) section = line.substr(1, line.size() - 2) + ".";
    if (const auto equals = line.find('='); equals != std::string::npos) {
      values[section + trimmed(line.substr(0, equals))] = trimmed(line.substr(equals + 1));
    }
  }
  return values;
}

RunFolder::RunFolder(const std::string& dir) {
  std::error_code error;
  std::filesystem::create_directories(dir, error);
  if (error) usage_fail("run.dir: the folder {} cannot be made: {}", dir, error.message());
  const std::string path = dir + "/lock";
  path_ = path;
  lock_ = open(path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0666);
  if (lock_ < 0) usage_fail("run.dir: {} cannot be opened: {}", path, std::strerror(errno));
  if (flock(lock_, LOCK_EX | LOCK_NB) != 0) {
    const int why = errno;
    const std::string holder = trimmed(read_file(path).substr(0, 200));
    close(lock_);
    if (why == EWOULDBLOCK) {
      usage_fail("run.dir: {} is in use by another run ({}); wait for it to end, or give this run its own folder", dir,
                 holder);
    }
    usage_fail("run.dir: {} cannot be locked: {}", path, std::strerror(why));
  }
  const std::string holder = fmt::format("host {}, process {}\n", host_name(), getpid());
  if (ftruncate(lock_, 0) != 0 || write(lock_, holder.data(), holder.size()) != ssize_t(holder.size())) {
    log_warning("{} cannot be written: {}", path, std::strerror(errno));
  }
}

void RunFolder::expect_there() const {
  struct stat held {};
  struct stat there {};
  if (stat(path_.c_str(), &there) != 0) fail("{} is gone: {}", path_, std::strerror(errno));
  if (fstat(lock_, &held) != 0 || held.st_ino != there.st_ino || held.st_dev != there.st_dev) {
    fail("{} is not the one that this run made: its folder was replaced", path_);
  }
}

RunFolder::~RunFolder() { close(lock_); }

void write_file(const std::string& path, const std::string& text) {
  struct Close {
    void operator()(std::FILE* file) const { std::fclose(file); }
  };
  const std::string aside = path + ".new";
  const std::unique_ptr<std::FILE, Close> file(std::fopen(aside.c_str(), "wb"));
  const bool written = file != nullptr && std::fwrite(text.data(), 1, text.size(), file.get()) == text.size() &&
                       std::fflush(file.get()) == 0 && fsync(fileno(file.get())) == 0;
  if (!written || std::rename(aside.c_str(), path.c_str()) != 0) {
    fail("{}: cannot write: {}", path, std::strerror(errno));
  }
}

std::string read_file(const std::string& path) {
  std::ostringstream text;
  text << std::ifstream(path, std::ios::binary).rdbuf();
  return text.str();
}

std::vector<std::string> training_differences(const std::string& deck_then, const std::string& deck_now) {
  const auto then = deck_values(deck_then), now = deck_values(deck_now);
  std::set<std::string> keys;
  for (const auto& values : {then, now}) {
    for (const auto& [key, value] : values) keys.insert(key);
  }
  const auto shown = [](const auto& values, const std::string& key) {
    const auto found = values.find(key);
    return found == values.end() ? std::string("absent") : found->second.empty() ? "empty" : found->second;
  };
  // Linear and cosine rates end at the last step, so with them the number of steps changes every rate.
  const std::string schedule = shown(now, "optimizer.schedule");
  const bool steps_matter = schedule == "linear" || schedule == "cosine";
  std::vector<std::string> differences;
  for (const std::string& key : keys) {
    const std::string before = shown(then, key), after = shown(now, key);
    if (before != after && (!is_free(key) || (steps_matter && key == "run.steps")))
      differences.push_back(fmt::format("{}: then {}, now {}", key, before, after));
  }
  return differences;
}

}  // namespace flanmoe
