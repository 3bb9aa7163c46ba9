#include <algorithm>
#include <cstring>
#include <exception>

#include "kernels/cuda/runtime.hpp"

namespace flanmoe::cuda {

void check(cudaError_t error, const char* call) {
  if (error != cudaSuccess) fail("{}: {} (CUDA error {})", call, cudaGetErrorString(error), int(error));
}

namespace {

/// While an exception ends this rank its stream may wait for ranks that never come, and whatever is given back waits
/// for the stream. The process ends soon anyway, and its GPU's memory with it.
bool unwinding() { return std::uncaught_exceptions() > 0; }

}  // namespace

Stream::Stream(bool urgent) {
  int least = 0, greatest = 0;
  check(cudaDeviceGetStreamPriorityRange(&least, &greatest), "cudaDeviceGetStreamPriorityRange");
  check(cudaStreamCreateWithPriority(&stream_, cudaStreamNonBlocking, urgent ? greatest : least),
        "cudaStreamCreateWithPriority");
}
Stream::~Stream() {
  if (!unwinding()) (void)cudaStreamDestroy(stream_);
}
void Stream::synchronize() const { check(cudaStreamSynchronize(stream_), "cudaStreamSynchronize"); }

Event::Event() { check(cudaEventCreateWithFlags(&event_, cudaEventDisableTiming), "cudaEventCreateWithFlags"); }
Event::~Event() {
  if (!unwinding()) (void)cudaEventDestroy(event_);
}
void Event::record(cudaStream_t stream) const { check(cudaEventRecord(event_, stream), "cudaEventRecord"); }
void Event::hold(cudaStream_t stream) const { check(cudaStreamWaitEvent(stream, event_, 0), "cudaStreamWaitEvent"); }
void Event::synchronize() const { check(cudaEventSynchronize(event_), "cudaEventSynchronize"); }

namespace {

void* take_device_memory(std::size_t bytes) {
  void* memory = nullptr;
  return cudaMalloc(&memory, bytes) == cudaSuccess ? memory : nullptr;
}
void give_device_memory_back(void* memory, std::size_t /*bytes*/) {
  if (unwinding()) return;
  (void)cudaDeviceSynchronize();  // what is queued may still use it
  (void)cudaFree(memory);
}

}  // namespace

const MemorySource device_memory = {take_device_memory, give_device_memory_back};

Staging::Staging(std::size_t bytes) : part_bytes_(bytes / kParts / 64 * 64), read_(kParts) {
  void* memory = nullptr;
  check(cudaMallocHost(&memory, bytes), "cudaMallocHost");
  pinned_ = static_cast<char*>(memory);
  check(cudaMalloc(&memory, bytes), "cudaMalloc");
  device_ = static_cast<char*>(memory);
}
Staging::~Staging() {
  if (unwinding()) return;
  (void)cudaFreeHost(pinned_);
  (void)cudaFree(device_);
}

/// Where there is room for `bytes`, at most a part.
std::size_t Staging::next(cudaStream_t stream, std::size_t bytes) {
  if (used_ + bytes > part_bytes_) {
    read_[part_].record(stream);
    part_ = (part_ + 1) % kParts;
    read_[part_].synchronize();
    used_ = 0;
  }
  const std::size_t at = part_ * part_bytes_ + used_;
  used_ += (bytes + 63) / 64 * 64;
  return at;
}

void Staging::upload(cudaStream_t stream, void* to_device, const void* from_host, std::size_t bytes) {
  for (std::size_t done = 0; done < bytes;) {
    const std::size_t piece = std::min(bytes - done, part_bytes_);
    char* at = pinned_ + next(stream, piece);
    std::memcpy(at, static_cast<const char*>(from_host) + done, piece);
    check(cudaMemcpyAsync(static_cast<char*>(to_device) + done, at, piece, cudaMemcpyHostToDevice, stream),
          "cudaMemcpyAsync");
    done += piece;
  }
}

void Staging::download(cudaStream_t stream, void* to_host, const void* from_device, std::size_t bytes) {
  for (std::size_t done = 0; done < bytes;) {
    const std::size_t piece = std::min(bytes - done, part_bytes_);
    char* at = pinned_ + next(stream, piece);
    check(cudaMemcpyAsync(at, static_cast<const char*>(from_device) + done, piece, cudaMemcpyDeviceToHost, stream),
          "cudaMemcpyAsync");
    check(cudaStreamSynchronize(stream), "cudaStreamSynchronize");
    std::memcpy(static_cast<char*>(to_host) + done, at, piece);
    done += piece;
  }
}

void* Staging::list(cudaStream_t stream, const void* from_host, std::size_t bytes) {
  FLANMOE_EXPECT(bytes <= part_bytes_, "a list of {} bytes for the device, room for {}", bytes, part_bytes_);
  const std::size_t at = next(stream, bytes);
  if (bytes == 0) return device_ + at;
  std::memcpy(pinned_ + at, from_host, bytes);
  check(cudaMemcpyAsync(device_ + at, pinned_ + at, bytes, cudaMemcpyHostToDevice, stream), "cudaMemcpyAsync");
  return device_ + at;
}

void* DeviceScratch::take_bytes(std::size_t bytes) {
  // Arenas hand out elements; bf16 is the smallest.
  auto* at = static_cast<char*>(static_cast<void*>(scope_.take<bf16>(std::int64_t(bytes + 1) / 2)));
  if (begin_ == nullptr) begin_ = at;
  end_ = std::max(end_, at + bytes);
  return at;
}

DeviceScratch::~DeviceScratch() {
#if FLANMOE_CUDA_EMULATED
  if (end_ > begin_) (void)cudaMemsetAsync(begin_, 0xff, std::size_t(end_ - begin_), stream_of(context_));
#endif
}

}  // namespace flanmoe::cuda
