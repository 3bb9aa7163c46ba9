#include "base/log.hpp"

#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <mutex>
#include <optional>

#include "base/error.hpp"
#include "base/line_file.hpp"

namespace flanmoe {
namespace {

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
  std::optional<LineFile> copy;
  bool copy_is_whole = true;
};

Log& the_log() {
  static Log log;
  return log;
}

/// What has no room where standard output or standard error go is lost: a full disk is no reason to end a run.
void put(std::FILE* out, const std::string& text) {
  std::fwrite(text.data(), 1, text.size(), out);
  std::fflush(out);
}

void end_progress(Log& log) {
  if (log.open_progress) put(stdout, "\n");
  log.open_progress = false;
}

/// Said once, until lines find room again.
void say_incomplete(Log& log, const Error& error) {
  if (log.copy_is_whole) put(stderr, fmt::format("rank {}: {}; lines of the log are lost\n", log.rank, error.what()));
  log.copy_is_whole = false;
}

void copy_line(Log& log, const std::string& text) {
  if (!log.copy) return;
  try {
    log.copy->append(text + "\n");
    log.copy_is_whole = true;
  } catch (const Error& error) {
    say_incomplete(log, error);
  }
}

}  // namespace

void configure_log(int rank, const std::string& file) {
  Log& log = the_log();
  const std::lock_guard lock(log.mutex);
  log.rank = rank;
  log.copy.reset();
  log.copy_is_whole = true;
  if (rank != 0 || file.empty()) return;
  try {
    log.copy.emplace(file);
  } catch (const Error& error) {
    say_incomplete(log, error);
  }
}

void log_line(const std::string& text) {
  Log& log = the_log();
  const std::lock_guard lock(log.mutex);
  if (log.rank != 0) return;
  end_progress(log);
  put(stdout, text + "\n");
  copy_line(log, text);
}

namespace {

void warn(const std::string& text, bool rank_0_only) {
  Log& log = the_log();
  const std::lock_guard lock(log.mutex);
  if (rank_0_only && log.rank != 0) return;
  end_progress(log);
  put(stderr, fmt::format("rank {}: {}\n", log.rank, text));
  copy_line(log, text);
}

}  // namespace

void warn_line(const std::string& text) { warn(text, false); }
void warn_shared_line(const std::string& text) { warn(text, true); }

void put_error(const std::string& text) { put(stderr, text + "\n"); }

void log_progress(const std::string& text, bool final_line) {
  Log& log = the_log();
  const std::lock_guard lock(log.mutex);
  if (log.rank != 0) return;
  if (log.terminal) {
    put(stdout, "\r\033[K" + text);
    log.open_progress = true;
    if (final_line) end_progress(log);
  } else {
    put(stdout, text + "\n");
  }
  copy_line(log, text);
}

}  // namespace flanmoe
