#include "kernels/transfer.hpp"

#include <cstring>

#include "kernels/elementwise.hpp"
#include "kernels/transfer_checks.hpp"

namespace flanmoe::cpu {
namespace {

void upload(KernelContext& context, const Tensor& to, const Tensor& from) {
  expect_transfer(to, from);
  if (to.data == from.data || to.size() == 0) return;
  if (to.dtype == from.dtype) {
    std::memcpy(to.data, from.data, to.bytes());
  } else {
    elementwise_kernels.convert(context, to, from);
  }
}

void download(KernelContext& /*context*/, const Tensor& to, const Tensor& from) {
  expect_transfer(to, from);
  expect_same_type(to, from);
  if (to.data != from.data && to.size() > 0) std::memcpy(to.data, from.data, to.bytes());
}

}  // namespace

const TransferKernels transfer_kernels = {&host_memory, upload, download};

}  // namespace flanmoe::cpu
