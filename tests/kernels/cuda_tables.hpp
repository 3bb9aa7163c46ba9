// The operations of kernels/cuda as tests call them, with operands in host memory.
#pragma once

#include "kernels/elementwise.hpp"
#include "kernels/on_device.hpp"
#include "kernels/optimizer.hpp"
#include "kernels/permute.hpp"

namespace flanmoe::test {

inline const ElementwiseKernels cuda_elementwise{on_device<&cuda::elementwise_kernels, &ElementwiseKernels::convert>,
                                                 on_device<&cuda::elementwise_kernels, &ElementwiseKernels::add>,
                                                 on_device<&cuda::elementwise_kernels, &ElementwiseKernels::scale>,
                                                 on_device<&cuda::elementwise_kernels, &ElementwiseKernels::zero>};

inline const PermuteKernels cuda_permute{on_device<&cuda::permute_kernels, &PermuteKernels::gather>,
                                         on_device<&cuda::permute_kernels, &PermuteKernels::scatter>,
                                         on_device<&cuda::permute_kernels, &PermuteKernels::combine_forward>,
                                         on_device<&cuda::permute_kernels, &PermuteKernels::combine_backward>,
                                         on_device<&cuda::permute_kernels, &PermuteKernels::gather_sum>};

inline const OptimizerKernels cuda_optimizer{on_device<&cuda::optimizer_kernels, &OptimizerKernels::adamw>,
                                             on_device<&cuda::optimizer_kernels, &OptimizerKernels::adafactor_factored>,
                                             on_device<&cuda::optimizer_kernels, &OptimizerKernels::adafactor_full>,
                                             on_device<&cuda::optimizer_kernels, &OptimizerKernels::balance>,
                                             on_device<&cuda::optimizer_kernels, &OptimizerKernels::sum_of_squares>,
                                             cuda::optimizer_kernels.scratch_bytes};

}  // namespace flanmoe::test
