// Tests that start whole jobs: ones that hang, fail or are killed.
#pragma once

#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <cstdio>
#include <cstdlib>
#include <string>

#include "parallel/communicator.hpp"

namespace flanmoe::test {

struct JobResult {
  int exit_code = -1;
  std::string output;
};

/// Runs one DISABLED_ test of this executable on its own ranks, in an environment without the marks of the job it runs
/// in. `settings` are environment variables, `options` arguments.
inline JobResult run_job(const std::string& test, int ranks, const std::string& options = "",
                         const std::string& settings = "") {
  const char* path = std::getenv("PATH");
  const std::string command = fmt::format(
      "env -i PATH='{}' HOME=/tmp OMP_NUM_THREADS=1 {} timeout 60 mpiexec --oversubscribe --allow-run-as-root "
      "--bind-to none --mca mpi_yield_when_idle 1 "
      "-n {} '{}' --gtest_also_run_disabled_tests '--gtest_filter=*.DISABLED_{}' {} 2>&1",
      path != nullptr ? path : "/usr/bin", settings, ranks, program_invocation_name, test, options);
  JobResult result;
  std::FILE* pipe = popen(command.c_str(), "r");
  if (pipe == nullptr) return result;
  std::array<char, 4096> buffer{};
  for (std::size_t n = 0; (n = std::fread(buffer.data(), 1, buffer.size(), pipe)) > 0;) {
    result.output.append(buffer.data(), n);
  }
  const int status = pclose(pipe);
  result.exit_code = WIFEXITED(status) ? WEXITSTATUS(status) : -1;
  return result;
}

/// Jobs are started where the test itself runs on one rank.
inline bool one_rank() { return Communicator::world().size() == 1; }

}  // namespace flanmoe::test
