// Adafactor on a GPU, a part of cuda::optimizer_kernels.
#pragma once

#include "kernels/optimizer.hpp"

namespace flanmoe::cuda {

void adafactor(KernelContext& context, std::span<const AdafactorMatrix> matrices, const AdafactorStep& step);
/// Bytes of scratch for one matrix.
std::size_t adafactor_scratch(std::int64_t rows, std::int64_t cols);

}  // namespace flanmoe::cuda
