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
/// their way to a GPU and back. `tf32`: a GPU may round fp32 operands of matrix products to TF32 (10 bits of fraction
/// instead of 23); sums stay fp32. Nothing on CPUs.
struct KernelContext {
  Arena* scratch = nullptr;
  void* stream = nullptr;
  cuda::Staging* staging = nullptr;
  bool tf32 = false;
};

/// Products are in full fp32 while one lives.
class FullPrecision {
 public:
  explicit FullPrecision(KernelContext& context) : context_(context), tf32_(context.tf32) { context.tf32 = false; }
  ~FullPrecision() { context_.tf32 = tf32_; }
  FullPrecision(const FullPrecision&) = delete;
  FullPrecision& operator=(const FullPrecision&) = delete;

 private:
  KernelContext& context_;
  bool tf32_;
};

}  // namespace flanmoe
