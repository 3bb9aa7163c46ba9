// What every kernel is given besides its operands.
#pragma once

#include "tensor/arena.hpp"

namespace flanmoe {

namespace cuda {
class Staging;
}

/// Per-rank execution state. `scratch` is a committed arena in which a kernel may take temporary memory after
/// mark() and must give it back by release() before it returns; kernels never allocate otherwise.
/// `stream` is the CUDA stream on GPUs and null on CPUs; `staging` is the host memory that lists and results cross on
/// their way to a GPU and back.
struct KernelContext {
  Arena* scratch = nullptr;
  void* stream = nullptr;
  cuda::Staging* staging = nullptr;
};

}  // namespace flanmoe
