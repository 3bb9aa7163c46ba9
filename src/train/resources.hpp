// What this process may use of its host, and what it has used.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

namespace flanmoe {

/// Cores that the operating system lets this process run on (the affinity mask that launchers set).
std::vector<int> allowed_cores();

/// Bytes of this process in memory now, and at most so far.
std::size_t resident_bytes();
std::size_t peak_resident_bytes();

constexpr double to_mib(std::size_t bytes) { return double(bytes) / (1024.0 * 1024.0); }

}  // namespace flanmoe
