#include "base/log.hpp"

#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <mutex>

namespace flanmoe {
namespace {

struct CloseFile {
  void operator()(std::FILE* file) const { std::fclose(file); }
};

/// mpirun gives rank 0 a terminal of its own even when mpirun's output is a file, so ask about the launcher's output
/// too. Where that cannot be seen (another host, no /proc) lines are plain.
bool launcher_has_terminal() {
  if (std::getenv("OMPI_COMM_WORLD_RANK") == nullptr && std::getenv("PMIX_RANK") == nullptr) return true;
  std::string target(256, '\0');
  const std::string link = fmt::format("/proc/{}/fd/1", getppid());
  target.resize(std::size_t(std::max<ssize_t>(0, readlink(link.c_str(), target.data(), target.size()))));
  return target.starts_with("/dev/pts/") || target.starts_with("/dev/tty");
}

bool can_rewrite_lines() {
  const char* term = std::getenv("TERM");
  return isatty(STDOUT_FILENO) != 0 && term != nullptr && std::string(term) != "dumb" && launcher_has_terminal();
}

struct Log {
  std::mutex mutex;
  int rank = 0;
  bool terminal = can_rewrite_lines();
  bool open_progress = false;  // the cursor stands behind an unfinished progress line
  std::unique_ptr<std::FILE, CloseFile> copy;
};

Log& the_log() {
  static Log log;
  return log;
}

void end_progress(Log& log) {
  if (log.open_progress) std::fputc('\n', stdout);
  log.open_progress = false;
}

void copy_line(Log& log, const std::string& text) {
  if (!log.copy) return;
  fmt::print(log.copy.get(), "{}\n", text);
  std::fflush(log.copy.get());
}

}  // namespace

void configure_log(int rank, const std::string& file) {
  Log& log = the_log();
  const std::lock_guard lock(log.mutex);
  log.rank = rank;
  log.copy.reset();
  if (rank == 0 && !file.empty()) log.copy.reset(std::fopen(file.c_str(), "a"));
}

void log_line(const std::string& text) {
  Log& log = the_log();
  const std::lock_guard lock(log.mutex);
  if (log.rank != 0) return;
  end_progress(log);
  fmt::print("{}\n", text);
  std::fflush(stdout);
  copy_line(log, text);
}

void warn_line(const std::string& text) {
  Log& log = the_log();
  const std::lock_guard lock(log.mutex);
  end_progress(log);
  std::fflush(stdout);
  fmt::print(stderr, "rank {}: {}\n", log.rank, text);
  copy_line(log, text);
}

void log_progress(const std::string& text, bool final_line) {
  Log& log = the_log();
  const std::lock_guard lock(log.mutex);
  if (log.rank != 0) return;
  if (log.terminal) {
    fmt::print("\r\033[K{}", text);
    log.open_progress = true;
    if (final_line) end_progress(log);
  } else {
    fmt::print("{}\n", text);
  }
  std::fflush(stdout);
  copy_line(log, text);
}

}  // namespace flanmoe
