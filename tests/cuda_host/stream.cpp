// Streams of the emulated device. Work runs only while the host waits, as late as it may; which of the streams that
// could go on does so is drawn, so that work that an event should have ordered runs in the wrong order sooner or later.
#include <sched.h>

#include <cstdio>
#include <cstdlib>
#include <deque>
#include <vector>

#include "runtime.hpp"

struct cudaEvent_st {
  std::uint64_t recorded = 0;   // how often it was recorded by the host
  std::uint64_t completed = 0;  // the last record that a stream has reached
};

struct cudaStream_st {
  struct Item {
    flanmoe::emulation::Work work;
    cudaEvent_t waits = nullptr;  // goes on when this event has completed so many records
    std::uint64_t records = 0;
  };
  std::deque<Item> queue;
};

namespace flanmoe::emulation {
namespace {

std::vector<cudaStream_t>& streams() {
  static auto* all = new std::vector<cudaStream_t>;
  return *all;
}

bool can_go_on(const cudaStream_st& stream) {
  if (stream.queue.empty()) return false;
  const auto& item = stream.queue.front();
  return item.waits == nullptr || item.waits->completed >= item.records;
}

void drop_all() {
  for (cudaStream_t stream : streams()) stream->queue.clear();
}

std::vector<cudaStream_t> able_streams() {
  std::vector<cudaStream_t> able;
  for (cudaStream_t stream : streams()) {
    if (can_go_on(*stream)) able.push_back(stream);
  }
  return able;
}

/// A piece of work of one of these streams, which is drawn. It stays queued while it waits for another process.
void run_one_of(const std::vector<cudaStream_t>& able) {
  cudaStream_t stream = able[random_below(std::uint32_t(able.size()))];
  auto& item = stream->queue.front();
  if (item.work && !item.work()) {
    sched_yield();
    return;
  }
  stream->queue.pop_front();
}

/// Runs work, of any stream, until `done`.
void run_until(const std::function<bool()>& done) {
  if (done()) return;
  if (!running_thread().empty()) throw Fault("a kernel waits for a stream");
  const OpenMemory open;
  try {
    while (!done()) {
      const std::vector<cudaStream_t> able = able_streams();
      if (able.empty()) throw Fault(fmt::format("streams wait for events that nothing records; seed {}", seed()));
      run_one_of(able);
    }
    check_guards();
  } catch (...) {
    drop_all();
    throw;
  }
}

bool known(cudaStream_t stream) {
  for (cudaStream_t each : streams()) {
    if (each == stream) return true;
  }
  return false;
}

}  // namespace

void enqueue(cudaStream_t stream, Work work) {
  if (!known(stream)) throw Fault("work for the default stream or for one that does not exist");
  stream->queue.push_back({.work = std::move(work)});
}

void run_one() {
  const std::vector<cudaStream_t> able = able_streams();
  if (able.empty()) return;
  const OpenMemory open;
  run_one_of(able);
}

void run_all() {
  run_until([] {
    for (cudaStream_t stream : streams()) {
      if (!stream->queue.empty()) return false;
    }
    return true;
  });
}

cudaError_t launch(const cudaLaunchConfig_t& config, std::function<void()> thread) {
  const dim3 grid = config.gridDim, block = config.blockDim;
  const std::uint64_t threads = std::uint64_t(block.x) * block.y * block.z;
  if (threads == 0 || threads > std::uint64_t(kMostThreads) || block.z > 64) return cudaErrorInvalidConfiguration;
  if (grid.x == 0 || grid.y == 0 || grid.z == 0) return cudaErrorInvalidConfiguration;
  if (grid.x > 0x7fffffffU || grid.y > 65535 || grid.z > 65535) return cudaErrorInvalidConfiguration;
  if (config.dynamicSmemBytes > std::size_t(kMostSharedBytes)) return cudaErrorInvalidValue;
  enqueue(config.stream, [grid, block, bytes = config.dynamicSmemBytes, thread = std::move(thread)] {
    run_grid(grid, block, bytes, thread);
    return true;
  });
  return cudaSuccess;
}

}  // namespace flanmoe::emulation

using flanmoe::emulation::enqueue;

const char* cudaGetErrorString(cudaError_t error) {
  switch (error) {
    case cudaSuccess: return "no error";
    case cudaErrorInvalidValue: return "invalid argument";
    case cudaErrorMemoryAllocation: return "out of memory";
    case cudaErrorInvalidConfiguration: return "invalid configuration argument";
    case cudaErrorInsufficientDriver: return "driver is insufficient for runtime";
    case cudaErrorNoDevice: return "no CUDA-capable device is detected";
    case cudaErrorInvalidDevice: return "invalid device ordinal";
    case cudaErrorNotReady: return "device not ready";
  }
  return "unknown error";
}
cudaError_t cudaGetLastError() { return cudaSuccess; }

namespace {

/// As many as the tests of one machine have ranks, each of which uses one; or FLANMOE_EMULATION_DEVICES.
int device_count() {
  static const int count = [] {
    const char* text = std::getenv("FLANMOE_EMULATION_DEVICES");
    return text != nullptr ? std::atoi(text) : 8;
  }();
  return count;
}

}  // namespace
cudaError_t cudaGetDeviceCount(int* count) {
  *count = device_count();
  return *count > 0 ? cudaSuccess : cudaErrorNoDevice;
}
cudaError_t cudaDeviceGetPCIBusId(char* id, int size, int device) {
  std::snprintf(id, std::size_t(size), "0000:%02x:00.0", unsigned(device));
  return cudaSuccess;
}
cudaError_t cudaGetDeviceProperties(cudaDeviceProp* properties, int /*device*/) {
  *properties = {"emulation on the host", std::size_t{1} << 40U, 8, 8, 0};
  return cudaSuccess;
}
namespace {
int current_device = 0;
}
cudaError_t cudaSetDevice(int device) {
  if (device < 0 || device >= device_count()) return cudaErrorInvalidDevice;
  current_device = device;
  return cudaSuccess;
}
cudaError_t cudaGetDevice(int* device) {
  *device = current_device;
  return cudaSuccess;
}
cudaError_t cudaDeviceSynchronize() {
  flanmoe::emulation::run_all();
  return cudaSuccess;
}

cudaError_t cudaMemcpyAsync(void* to, const void* from, std::size_t bytes, cudaMemcpyKind kind, cudaStream_t stream) {
  return cudaMemcpy2DAsync(to, bytes, from, bytes, bytes, 1, kind, stream);
}
cudaError_t cudaMemcpy2DAsync(void* to, std::size_t to_pitch, const void* from, std::size_t from_pitch,
                              std::size_t width, std::size_t height, cudaMemcpyKind kind, cudaStream_t stream) {
  if (width > to_pitch || width > from_pitch) return cudaErrorInvalidValue;
  if (width == 0 || height == 0) return cudaSuccess;
  enqueue(stream, [=] {
    using namespace flanmoe::emulation;
    // From memory that is not pinned CUDA would stop the host meanwhile: not what an asynchronous copy is for.
    const bool to_device = kind == cudaMemcpyHostToDevice || kind == cudaMemcpyDeviceToDevice;
    const bool from_device = kind == cudaMemcpyDeviceToHost || kind == cudaMemcpyDeviceToDevice;
    (to_device ? expect_device : expect_pinned)(to, to_pitch * (height - 1) + width, "the target of a copy");
    (from_device ? expect_device : expect_pinned)(from, from_pitch * (height - 1) + width, "the source of a copy");
    for (std::size_t row = 0; row < height; ++row) {
      std::memmove(static_cast<char*>(to) + row * to_pitch, static_cast<const char*>(from) + row * from_pitch, width);
    }
    return true;
  });
  return cudaSuccess;
}
cudaError_t cudaMemsetAsync(void* at, int value, std::size_t bytes, cudaStream_t stream) {
  return cudaMemset2DAsync(at, bytes, value, bytes, 1, stream);
}
cudaError_t cudaMemset2DAsync(void* at, std::size_t pitch, int value, std::size_t width, std::size_t height,
                              cudaStream_t stream) {
  if (width > pitch) return cudaErrorInvalidValue;
  if (width == 0 || height == 0) return cudaSuccess;
  enqueue(stream, [=] {
    flanmoe::emulation::expect_device(at, pitch * (height - 1) + width, "memory to be filled");
    for (std::size_t row = 0; row < height; ++row) std::memset(static_cast<char*>(at) + row * pitch, value, width);
    return true;
  });
  return cudaSuccess;
}

/// Priorities are hints: the drawn order takes none.
cudaError_t cudaDeviceGetStreamPriorityRange(int* least, int* greatest) {
  *least = 0;
  *greatest = -5;
  return cudaSuccess;
}
cudaError_t cudaStreamCreateWithPriority(cudaStream_t* stream, unsigned /*flags*/, int /*priority*/) {
  *stream = new cudaStream_st;
  flanmoe::emulation::streams().push_back(*stream);
  return cudaSuccess;
}
cudaError_t cudaStreamDestroy(cudaStream_t stream) {
  cudaStreamSynchronize(stream);
  std::erase(flanmoe::emulation::streams(), stream);
  delete stream;
  return cudaSuccess;
}
cudaError_t cudaStreamSynchronize(cudaStream_t stream) {
  if (!flanmoe::emulation::known(stream)) return cudaErrorInvalidValue;
  flanmoe::emulation::run_until([stream] { return stream->queue.empty(); });
  return cudaSuccess;
}
cudaError_t cudaStreamWaitEvent(cudaStream_t stream, cudaEvent_t event, unsigned /*flags*/) {
  enqueue(stream, nullptr);
  stream->queue.back().waits = event;
  stream->queue.back().records = event->recorded;
  return cudaSuccess;
}
cudaError_t cudaEventCreateWithFlags(cudaEvent_t* event, unsigned /*flags*/) {
  *event = new cudaEvent_st;
  return cudaSuccess;
}
cudaError_t cudaEventDestroy(cudaEvent_t event) {
  cudaEventSynchronize(event);
  delete event;
  return cudaSuccess;
}
cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t stream) {
  const std::uint64_t record = ++event->recorded;
  enqueue(stream, [event, record] {
    event->completed = record;
    return true;
  });
  return cudaSuccess;
}
cudaError_t cudaEventQuery(cudaEvent_t event) {
  return event->completed >= event->recorded ? cudaSuccess : cudaErrorNotReady;
}
cudaError_t cudaEventSynchronize(cudaEvent_t event) {
  flanmoe::emulation::run_until([event] { return event->completed >= event->recorded; });
  return cudaSuccess;
}
