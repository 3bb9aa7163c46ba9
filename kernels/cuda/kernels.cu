#include "kernels/kernels.hpp"

namespace flanmoe {

const Kernels* cuda_kernels() {
  static const Kernels table{"cuda",
                             cuda::transfer_kernels,
                             cuda::matmul_kernels,
                             cuda::norm_kernels,
                             cuda::layer_norm_kernels,
                             cuda::attention_kernels,
                             cuda::relative_bias_kernels,
                             cuda::rotary_kernels,
                             cuda::activation_kernels,
                             cuda::column_scale_kernels,
                             cuda::dropout_kernels,
                             cuda::embedding_kernels,
                             cuda::cross_entropy_kernels,
                             cuda::router_kernels,
                             cuda::permute_kernels,
                             cuda::optimizer_kernels,
                             cuda::adafactor_block_kernels,
                             cuda::elementwise_kernels};
  return &table;
}

}  // namespace flanmoe
