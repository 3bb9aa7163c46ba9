// Between the host and the memory of a device: what the host reads of tensors, and what it fills.
#pragma once

#include <cstdint>
#include <vector>

#include "kernels/context.hpp"
#include "tensor/tensor.hpp"

namespace flanmoe {

struct TransferKernels {
  /// Where the tensors of this device lie.
  const MemorySource* memory;
  /// to = from, rounded to nearest even where `to` has another floating type. Both contiguous and of the same shape;
  /// `from` is memory of the host and may be changed when this returns. Nothing to do when both are the same memory.
  void (*upload)(KernelContext&, const Tensor& to, const Tensor& from);
  /// to = from, of the same type and shape, both contiguous. `to` is memory of the host; what arrives is there when
  /// this returns: on a GPU it waits for the stream. Nothing to do when both are the same memory.
  void (*download)(KernelContext&, const Tensor& to, const Tensor& from);

  /// The host reads and writes tensors of this device directly.
  bool host_reaches() const { return memory == &host_memory; }
};

/// Memory of the host in which it reads and fills tensors of a device. Where the host reaches them it is the tensor
/// itself: nothing is copied and no memory is taken.
class HostRoom {
 public:
  explicit HostRoom(const TransferKernels& transfer) : transfer_(transfer) {}

  /// Takes memory for tensors of at most so many bytes, so that later calls take none.
  void reserve(std::size_t bytes);
  /// A tensor of the shape of `t` to be filled, valid until the next call; write() brings it to the device.
  Tensor like(const Tensor& t);
  void write(KernelContext& context, const Tensor& t);
  /// What `t` holds, valid until the next call. Waits for the device.
  Tensor read(KernelContext& context, const Tensor& t);

 private:
  const TransferKernels& transfer_;
  std::vector<double> memory_;  // aligned for every type
};

/// Memory of the device for a list of at most `count` numbers that the host makes; none where the host reaches it.
Tensor list_room(const TransferKernels&, Arena& arena, std::int64_t count);
/// The list as kernels read it (n x 1, i32): itself, which must outlive them, or its copy in `room`.
Tensor list_on_device(KernelContext&, const TransferKernels&, const Tensor& room,
                      const std::vector<std::int32_t>& list);

}  // namespace flanmoe

namespace flanmoe::reference {
extern const TransferKernels transfer_kernels;
}
namespace flanmoe::cpu {
extern const TransferKernels transfer_kernels;
}
namespace flanmoe::cuda {
extern const TransferKernels transfer_kernels;
}
