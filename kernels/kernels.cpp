#include "kernels/kernels.hpp"

#include "base/error.hpp"

namespace flanmoe {

const Kernels& kernels_for(const std::string& device) {
  static const Kernels reference_table{"reference",
                                       reference::transfer_kernels,
                                       reference::matmul_kernels,
                                       reference::norm_kernels,
                                       reference::layer_norm_kernels,
                                       reference::attention_kernels,
                                       reference::relative_bias_kernels,
                                       reference::rotary_kernels,
                                       reference::activation_kernels,
                                       reference::column_scale_kernels,
                                       reference::dropout_kernels,
                                       reference::embedding_kernels,
                                       reference::cross_entropy_kernels,
                                       reference::router_kernels,
                                       reference::permute_kernels,
                                       reference::optimizer_kernels,
                                       reference::adafactor_block_kernels,
                                       reference::elementwise_kernels};
  static const Kernels cpu_table{"cpu",
                                 cpu::transfer_kernels,
                                 cpu::matmul_kernels,
                                 cpu::norm_kernels,
                                 cpu::layer_norm_kernels,
                                 cpu::attention_kernels,
                                 cpu::relative_bias_kernels,
                                 cpu::rotary_kernels,
                                 cpu::activation_kernels,
                                 cpu::column_scale_kernels,
                                 cpu::dropout_kernels,
                                 cpu::embedding_kernels,
                                 cpu::cross_entropy_kernels,
                                 cpu::router_kernels,
                                 cpu::permute_kernels,
                                 cpu::optimizer_kernels,
                                 cpu::adafactor_block_kernels,
                                 cpu::elementwise_kernels};
  if (device == reference_table.device) return reference_table;
  if (device == cpu_table.device) return cpu_table;
  if (device != "cuda") usage_fail("run.device is \"{}\"; known devices are cpu, cuda and reference", device);
  const Kernels* table = cuda_kernels();
  if (table == nullptr) usage_fail("run.device = cuda: this program was built without CUDA; expected cpu");
  return *table;
}

}  // namespace flanmoe
