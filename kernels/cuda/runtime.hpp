// Streams, events and memory of one GPU, and the ways of small things between host and device. For host code of
// kernels/cuda and src/parallel; kernels include device.cuh, which includes this.
#pragma once

#include <cuda_runtime.h>

#include <cstddef>
#include <cstdint>
#include <span>
#include <type_traits>
#include <vector>

#include "kernels/context.hpp"
#include "kernels/scratch.hpp"

namespace flanmoe::cuda {

/// Throws Error naming the call when it did not succeed.
void check(cudaError_t error, const char* call);

class Stream {
 public:
  /// An urgent stream's kernels are placed on the GPU before waiting blocks of other streams.
  explicit Stream(bool urgent = false);
  ~Stream();
  Stream(const Stream&) = delete;
  Stream& operator=(const Stream&) = delete;
  cudaStream_t get() const { return stream_; }
  /// The host waits for everything that is queued.
  void synchronize() const;

 private:
  cudaStream_t stream_ = nullptr;
};

class Event {
 public:
  Event();
  ~Event();
  Event(const Event&) = delete;
  Event& operator=(const Event&) = delete;
  void record(cudaStream_t stream) const;
  /// Later work of the stream waits for what was recorded last.
  void hold(cudaStream_t stream) const;
  /// The host waits.
  void synchronize() const;

 private:
  cudaEvent_t event_ = nullptr;
};

/// Device memory for arenas.
extern const MemorySource device_memory;

inline cudaStream_t stream_of(const KernelContext& context) { return static_cast<cudaStream_t>(context.stream); }

/// Pinned host memory, used in turns: a list is copied here at once, so its owner may change it, and from here to the
/// device in the order of the stream. The host waits only when a part is needed again before the stream has read it.
/// Device memory of the same size takes lists that an operation reads, and is used in the same turns.
class Staging {
 public:
  explicit Staging(std::size_t bytes = std::size_t{4} << 20);
  ~Staging();
  Staging(const Staging&) = delete;
  Staging& operator=(const Staging&) = delete;

  void upload(cudaStream_t stream, void* to_device, const void* from_host, std::size_t bytes);
  /// Waits for the stream: what arrives is there when this returns.
  void download(cudaStream_t stream, void* to_host, const void* from_device, std::size_t bytes);
  /// A copy on the device for kernels that the operation starts on this stream. An operation may have lists of three
  /// quarters of the bytes together, and none longer than a quarter.
  void* list(cudaStream_t stream, const void* from_host, std::size_t bytes);

 private:
  static constexpr std::size_t kParts = 4;
  std::size_t next(cudaStream_t stream, std::size_t bytes);

  char *pinned_ = nullptr, *device_ = nullptr;
  std::size_t part_bytes_ = 0, part_ = 0, used_ = 0;
  std::vector<Event> read_;  // when the stream is past the uploads of each part
};

/// A list of the host for the kernels of one operation: see Staging::list.
template <class T>
std::remove_const_t<T>* upload(KernelContext& context, std::span<T> list) {
  return static_cast<std::remove_const_t<T>*>(
      context.staging->list(stream_of(context), list.data(), list.size_bytes()));
}
/// Where tensors begin, for kernels that go over many of them.
template <class T>
T* const* upload_pointers(KernelContext& context, std::span<const Tensor> tensors) {
  std::vector<T*> pointers;
  for (const Tensor& tensor : tensors) pointers.push_back(tensor.as<T>());
  return upload(context, std::span<T* const>(pointers));
}

/// Temporary device memory of an operation. What was taken is not readable when the scope has ended: the emulation
/// fills it with NaN in the order of the stream.
class DeviceScratch {
 public:
  explicit DeviceScratch(KernelContext& context) : context_(context), scope_(context) {}
  ~DeviceScratch();
  DeviceScratch(const DeviceScratch&) = delete;
  DeviceScratch& operator=(const DeviceScratch&) = delete;

  /// `count` uninitialised elements, 64-byte aligned. T is an element type, or any trivial type of 4 or 8 bytes.
  template <class T>
  T* take(std::int64_t count) {
    static_assert(std::is_trivially_copyable_v<T>);
    return static_cast<T*>(take_bytes(std::size_t(count) * sizeof(T)));
  }

 private:
  void* take_bytes(std::size_t bytes);

  KernelContext& context_;
  ScratchScope scope_;
  char *begin_ = nullptr, *end_ = nullptr;  // what was taken
};

/// `count` numbers of the device on the host. Waits for the stream.
template <class T>
void download(KernelContext& context, T* to_host, const T* from_device, std::int64_t count) {
  context.staging->download(stream_of(context), to_host, from_device, std::size_t(count) * sizeof(T));
}

}  // namespace flanmoe::cuda
