// What programs link in place of kernels/cuda and *.cu of this folder where CUDA was not built.
#include "base/error.hpp"
#include "kernels/kernels.hpp"
#include "parallel/device.hpp"

namespace flanmoe {

const Kernels* cuda_kernels() { return nullptr; }

std::unique_ptr<Device> open_gpu(const Communicator& /*world*/) {
  kernels_for("cuda");  // says so
  throw LogicError("a table of operations without a device");
}

}  // namespace flanmoe
