// Jobs of a test that runs in the cluster of tests/slurm/cluster.
#pragma once

#include <signal.h>

#include <array>
#include <chrono>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <sstream>
#include <string>
#include <thread>
#include <vector>

#include "base/error.hpp"
#include "regression/program.hpp"

namespace flanmoe::slurm {

using regression::Ended;
using regression::Words;

/// Words for a shell.
inline std::string quoted(const Words& words) {
  std::string text;
  for (const std::string& word : words) text += "'" + word + "' ";
  return text;
}

/// Runs a command; its standard output and standard error together.
inline Ended shell(const std::string& command) {
  Ended ended;
  std::FILE* pipe = popen(("exec 2>&1; " + command).c_str(), "r");
  FLANMOE_EXPECT(pipe != nullptr, "no shell for {}", command);
  std::array<char, 4096> buffer{};
  for (std::size_t n = 0; (n = std::fread(buffer.data(), 1, buffer.size(), pipe)) > 0;) {
    ended.output.append(buffer.data(), n);
  }
  const int status = pclose(pipe);
  ended.exit_code = WIFEXITED(status) ? WEXITSTATUS(status) : -1;
  while (ended.output.ends_with('\n')) ended.output.pop_back();
  return ended;
}

/// A script of jobs/ with the programs of this build, and perhaps more in its environment ("NAME=VALUE ...").
inline Ended jobs(const std::string& script, const Words& words, const std::string& environment = "") {
  const std::string build = std::filesystem::path(FLANMOE_PROGRAM).parent_path();
  // A rank that is gone ends its step after so many seconds.
  return shell(fmt::format("BUILD='{}' OMP_NUM_THREADS=1 SLURM_WAIT=5 {} {}/jobs/{} {}", build, environment,
                           FLANMOE_SOURCE_DIR, script, quoted(words)));
}

inline std::string text_of(const std::string& path) {
  std::ostringstream text;
  text << std::ifstream(path, std::ios::binary).rdbuf();
  return text.str();
}

/// True as soon as the condition holds; false when it does not within so many seconds.
template <class Condition>
bool wait_until(Condition condition, int seconds = 120) {
  const auto end = std::chrono::steady_clock::now() + std::chrono::seconds(seconds);
  while (!condition()) {
    if (std::chrono::steady_clock::now() > end) return false;
    std::this_thread::sleep_for(std::chrono::microseconds(500));
  }
  return true;
}

/// PENDING, RUNNING, ...; empty when the job is over.
inline std::string state_in_queue(const std::string& job) {
  return shell("squeue --noheader --format=%T --jobs=" + job + " 2>/dev/null | head -n 1").output;
}

/// Waits until all of these jobs are over.
inline bool wait_for_end(const Words& all, int seconds = 120) {
  for (const std::string& job : all) {
    const bool over = wait_until(
        [&] {
          std::this_thread::sleep_for(std::chrono::milliseconds(100));
          return state_in_queue(job).empty();
        },
        seconds);
    if (!over) return false;
  }
  return true;
}

/// The value of a field that scontrol shows of a job.
inline std::string field_of(const std::string& job, const std::string& field) {
  return shell("scontrol show job " + job + " | tr ' ' '\\n' | sed -n 's/^" + field + "=//p' | head -n 1").output;
}

/// A node of the cluster that dies: its slurmd, and the steps and ranks that it runs.
class Node {
 public:
  explicit Node(std::string name) : name_(std::move(name)) {}

  /// Looks up what this job runs there now.
  void look(const std::string& job) {
    processes_.clear();
    pid_t daemon = 0;
    std::ifstream(fmt::format("{}/{}.pid", std::getenv("CLUSTER"), name_)) >> daemon;
    processes_.push_back(daemon);
    for (const auto& entry : std::filesystem::directory_iterator("/proc")) {
      const pid_t process = std::atoi(entry.path().filename().c_str());
      if (process == 0 || text_of(entry.path() / "comm") != "flanmoe\n") continue;
      const std::string environment = '\0' + text_of(entry.path() / "environ");
      const auto has = [&](const std::string& variable) {
        return environment.find('\0' + variable + '\0') != std::string::npos;
      };
      if (!has("SLURMD_NODENAME=" + name_) || !has("SLURM_JOB_ID=" + job) ||
          !has("CLUSTER=" + std::string(std::getenv("CLUSTER")))) {
        continue;
      }
      std::istringstream stat(text_of(entry.path() / "stat"));
      std::string number, program, state;
      pid_t step = 0;
      stat >> number >> program >> state >> step;
      processes_.insert(processes_.end(), {step, process});
    }
  }
  std::size_t ranks() const { return processes_.size() / 2; }
  void signal_ranks(int signal) const {
    for (std::size_t i = 2; i < processes_.size(); i += 2) kill(processes_[i], signal);
  }
  void kill_all() const {
    for (const pid_t process : processes_) kill(process, SIGKILL);
  }
  /// What the controller would find out by itself a while after the node is silent.
  void report_down() const { shell(fmt::format("scontrol update nodename={} state=down reason=dead", name_)); }
  void start_again() const {
    shell(fmt::format("setsid slurmd -N {} >/dev/null 2>&1", name_));
    wait_until([&] { return shell("sinfo --noheader --format=%T --nodes=" + name_).output == "idle"; }, 10);
  }

 private:
  std::string name_;
  std::vector<pid_t> processes_;  // daemon, then step and rank by turns
};

}  // namespace flanmoe::slurm
