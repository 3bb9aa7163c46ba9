// Transfers of the devices whose tensors lie in memory of the host.
#pragma once

#include <cstring>

#include "kernels/elementwise.hpp"
#include "kernels/transfer.hpp"
#include "kernels/transfer_checks.hpp"

namespace flanmoe {

/// `elementwise`: of the device, to convert by.
template <const ElementwiseKernels& elementwise>
void upload_on_host(KernelContext& context, const Tensor& to, const Tensor& from) {
  expect_transfer(to, from);
  if (to.data == from.data || to.size() == 0) return;
  if (to.dtype == from.dtype) {
    std::memcpy(to.data, from.data, to.bytes());
  } else {
    elementwise.convert(context, to, from);
  }
}

inline void download_on_host(KernelContext& /*context*/, const Tensor& to, const Tensor& from) {
  expect_transfer(to, from);
  expect_same_type(to, from);
  if (to.data != from.data && to.size() > 0) std::memcpy(to.data, from.data, to.bytes());
}

}  // namespace flanmoe
