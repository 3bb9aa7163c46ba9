#include "parallel/device.hpp"

namespace flanmoe {

std::unique_ptr<Device> open_device(const std::string& name, const Communicator& world) {
  if (name == "cuda") return open_gpu(world);
  return std::make_unique<Device>();
}

}  // namespace flanmoe
