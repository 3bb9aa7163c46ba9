// Memory and streams of the emulated device.
#pragma once

#include <cstddef>
#include <functional>
#include <string>

#include "cuda_runtime.h"

namespace flanmoe::emulation {

/// Work of a stream. Called until it returns true; a piece of work that waits for another process returns false and is
/// asked again, so that work of other streams goes on meanwhile.
using Work = std::function<bool()>;
/// Puts work at the end of a stream. Nothing runs before the host waits for something.
void enqueue(cudaStream_t stream, Work work);
/// Runs everything that is queued anywhere.
void run_all();
/// Runs one piece of work of a stream that can go on, if there is one.
void run_one();

/// While one lives the host may touch device memory: work of streams runs inside.
class OpenMemory {
 public:
  OpenMemory();
  ~OpenMemory();
  OpenMemory(const OpenMemory&) = delete;
  OpenMemory& operator=(const OpenMemory&) = delete;
};

/// Memory of the device, or of the host in which devices copy, by its address; throws Fault for anything else.
void expect_device(const void* at, std::size_t bytes, const char* what);
void expect_pinned(const void* at, std::size_t bytes, const char* what);
/// True when guard bytes around device memory are as they were; otherwise `what` says where not.
void check_guards();

}  // namespace flanmoe::emulation
