#include "kernels/transfer.hpp"

namespace flanmoe {

void HostRoom::reserve(std::size_t bytes) {
  if (transfer_.host_reaches()) return;
  const std::size_t count = (bytes + sizeof(double) - 1) / sizeof(double);
  if (memory_.size() < count) memory_.resize(count);
}

Tensor HostRoom::like(const Tensor& t) {
  if (transfer_.host_reaches()) return t;
  reserve(t.bytes());
  return {memory_.data(), t.dtype, t.batch, t.rows, t.cols, t.cols};
}

void HostRoom::write(KernelContext& context, const Tensor& t) { transfer_.upload(context, t, like(t)); }

Tensor HostRoom::read(KernelContext& context, const Tensor& t) {
  const Tensor here = like(t);
  transfer_.download(context, here, t);
  return here;
}

Tensor list_room(const TransferKernels& transfer, Arena& arena, std::int64_t count) {
  return arena.allocate(DType::i32, transfer.host_reaches() ? 0 : count, 1);
}

Tensor list_on_device(KernelContext& context, const TransferKernels& transfer, const Tensor& room,
                      const std::vector<std::int32_t>& list) {
  const auto count = std::int64_t(list.size());
  // Kernels only read lists; Tensor has no const form.
  const Tensor here = make_tensor(const_cast<std::int32_t*>(list.data()), count, 1);
  if (transfer.host_reaches()) return here;
  const Tensor there = room.slice_rows(0, count);
  transfer.upload(context, there, here);
  return there;
}

}  // namespace flanmoe
