// What a rank computes on: the cores of its host, or a GPU of its own.
#pragma once

#include <memory>
#include <string>

#include "kernels/context.hpp"
#include "parallel/communicator.hpp"

namespace flanmoe {

/// As it stands, the host. Outlives all that was computed on it and the communicators that it connected.
class Device {
 public:
  Device() = default;
  virtual ~Device() = default;
  Device(const Device&) = delete;
  Device& operator=(const Device&) = delete;

  /// What kernels are given besides scratch: stream and staging of a GPU.
  virtual KernelContext context() { return {}; }
  /// From now on tensors travel between the memories of devices. Collective over all of the communicators.
  virtual void connect(Communicators& /*communicators*/) {}
};

/// The device that run.device names. Throws UsageError, the same on every rank, when a rank cannot have it: a program
/// without CUDA, a host without driver or GPU, or fewer GPUs on a host than ranks. Collective.
std::unique_ptr<Device> open_device(const std::string& name, const Communicator& world);

/// A GPU for each rank, chosen by the rank's place among those of its host. As open_device.
std::unique_ptr<Device> open_gpu(const Communicator& world);

}  // namespace flanmoe
