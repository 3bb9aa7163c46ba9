// The operations of kernels/cuda as tests call them, with operands in host memory.
#pragma once

#include "kernels/elementwise.hpp"
#include "kernels/on_device.hpp"

namespace flanmoe::test {

inline const ElementwiseKernels cuda_elementwise{on_device<&cuda::elementwise_kernels, &ElementwiseKernels::convert>,
                                                 on_device<&cuda::elementwise_kernels, &ElementwiseKernels::add>,
                                                 on_device<&cuda::elementwise_kernels, &ElementwiseKernels::scale>,
                                                 on_device<&cuda::elementwise_kernels, &ElementwiseKernels::zero>};

}  // namespace flanmoe::test
