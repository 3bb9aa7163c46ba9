// Work that falls into independent parts, on a few threads.
#pragma once

#include <functional>
#include <vector>

namespace flanmoe {

/// Runs the jobs on `threads` threads, in order of their start. The first error is thrown when all have stopped.
void run_parallel(const std::vector<std::function<void()>>& jobs, int threads);

}  // namespace flanmoe
