// Tables of operations of kernels/cuda. What differs from the declarations
// on a GPU: a target of the loss that is no word is not refused, because the host does not see it; it makes nll_T NaN.
#pragma once

#include "kernels/attention.hpp"
#include "kernels/cross_entropy.hpp"
#include "kernels/matmul.hpp"
#include "kernels/router.hpp"

namespace flanmoe::cuda {

extern const AttentionKernels attention_kernels;
extern const CrossEntropyKernels cross_entropy_kernels;
extern const MatmulKernels matmul_kernels;
/// scratch_bytes: of any of these, not of assign and expert_choice alone.
extern const RouterKernels router_kernels;

}  // namespace flanmoe::cuda
