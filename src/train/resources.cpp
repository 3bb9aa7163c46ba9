#include "train/resources.hpp"

#include <sched.h>
#include <sys/resource.h>
#include <unistd.h>

#include <fstream>

#include "base/error.hpp"
#include "base/host.hpp"

namespace flanmoe {

std::vector<int> allowed_cores() {
  constexpr int kMostCores = 8192;
  cpu_set_t* const set = CPU_ALLOC(kMostCores);
  const std::size_t bytes = CPU_ALLOC_SIZE(kMostCores);
  std::vector<int> cores;
  if (set != nullptr && sched_getaffinity(0, bytes, set) == 0) {
    for (int core = 0; core < kMostCores; ++core) {
      if (CPU_ISSET_S(core, bytes, set)) cores.push_back(core);
    }
  }
  CPU_FREE(set);
  if (cores.empty()) fail("{}: the affinity mask of this process cannot be read", host_name());
  return cores;
}

std::size_t resident_bytes() {
  std::size_t total_pages = 0, resident_pages = 0;
  std::ifstream statm("/proc/self/statm");
  if (!(statm >> total_pages >> resident_pages)) return peak_resident_bytes();  // a machine without /proc
  return resident_pages * std::size_t(sysconf(_SC_PAGESIZE));
}

std::size_t peak_resident_bytes() {
  rusage usage{};
  getrusage(RUSAGE_SELF, &usage);
  return std::size_t(usage.ru_maxrss) * 1024;  // Linux counts in KiB
}

}  // namespace flanmoe
