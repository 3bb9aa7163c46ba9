// The operations of kernels/cuda as tests call them, with operands in host memory.
#pragma once

#include "kernels/activation.hpp"
#include "kernels/adafactor_blocks.hpp"
#include "kernels/attention.hpp"
#include "kernels/column_scale.hpp"
#include "kernels/cross_entropy.hpp"
#include "kernels/dropout.hpp"
#include "kernels/elementwise.hpp"
#include "kernels/embedding.hpp"
#include "kernels/matmul.hpp"
#include "kernels/norm.hpp"
#include "kernels/on_device.hpp"
#include "kernels/optimizer.hpp"
#include "kernels/permute.hpp"
#include "kernels/relative_bias.hpp"
#include "kernels/rotary.hpp"
#include "kernels/router.hpp"

namespace flanmoe::test {

inline const ElementwiseKernels cuda_elementwise{on_device<&cuda::elementwise_kernels, &ElementwiseKernels::convert>,
                                                 on_device<&cuda::elementwise_kernels, &ElementwiseKernels::add>,
                                                 on_device<&cuda::elementwise_kernels, &ElementwiseKernels::scale>,
                                                 on_device<&cuda::elementwise_kernels, &ElementwiseKernels::zero>,
                                                 on_device<&cuda::elementwise_kernels, &ElementwiseKernels::sum>};
inline const ActivationKernels cuda_activation{
    on_device<&cuda::activation_kernels, &ActivationKernels::relu_forward>,
    on_device<&cuda::activation_kernels, &ActivationKernels::relu_backward>,
    on_device<&cuda::activation_kernels, &ActivationKernels::gated_gelu_forward>,
    on_device<&cuda::activation_kernels, &ActivationKernels::gated_gelu_backward>,
    on_device<&cuda::activation_kernels, &ActivationKernels::gated_swish_forward>,
    on_device<&cuda::activation_kernels, &ActivationKernels::gated_swish_backward>};
inline const ColumnScaleKernels cuda_column_scale{
    on_device<&cuda::column_scale_kernels, &ColumnScaleKernels::forward>,
    on_device<&cuda::column_scale_kernels, &ColumnScaleKernels::backward>};
inline const DropoutKernels cuda_dropout{on_device<&cuda::dropout_kernels, &DropoutKernels::apply>,
                                         on_device<&cuda::dropout_kernels, &DropoutKernels::add>};
inline const EmbeddingKernels cuda_embedding{on_device<&cuda::embedding_kernels, &EmbeddingKernels::forward>,
                                             on_device<&cuda::embedding_kernels, &EmbeddingKernels::backward>,
                                             cuda::embedding_kernels.scratch_bytes};
inline const RelativeBiasKernels cuda_relative_bias{
    on_device<&cuda::relative_bias_kernels, &RelativeBiasKernels::expand>,
    on_device<&cuda::relative_bias_kernels, &RelativeBiasKernels::gradient>};
inline const RotaryKernels cuda_rotary{on_device<&cuda::rotary_kernels, &RotaryKernels::table>,
                                       on_device<&cuda::rotary_kernels, &RotaryKernels::forward>,
                                       on_device<&cuda::rotary_kernels, &RotaryKernels::backward>};
inline const NormKernels cuda_norm{on_device<&cuda::norm_kernels, &NormKernels::forward>,
                                   on_device<&cuda::norm_kernels, &NormKernels::backward>,
                                   cuda::norm_kernels.scratch_bytes};
inline const NormKernels cuda_layer_norm{on_device<&cuda::layer_norm_kernels, &NormKernels::forward>,
                                         on_device<&cuda::layer_norm_kernels, &NormKernels::backward>,
                                         cuda::layer_norm_kernels.scratch_bytes};

inline const PermuteKernels cuda_permute{on_device<&cuda::permute_kernels, &PermuteKernels::gather>,
                                         on_device<&cuda::permute_kernels, &PermuteKernels::scatter>,
                                         on_device<&cuda::permute_kernels, &PermuteKernels::combine_forward>,
                                         on_device<&cuda::permute_kernels, &PermuteKernels::combine_backward>,
                                         on_device<&cuda::permute_kernels, &PermuteKernels::gather_sum>};

inline const OptimizerKernels cuda_optimizer{on_device<&cuda::optimizer_kernels, &OptimizerKernels::adamw>,
                                             on_device<&cuda::optimizer_kernels, &OptimizerKernels::adafactor>,
                                             on_device<&cuda::optimizer_kernels, &OptimizerKernels::balance>,
                                             on_device<&cuda::optimizer_kernels, &OptimizerKernels::sums_of_squares>,
                                             on_device<&cuda::optimizer_kernels, &OptimizerKernels::write_weights>,
                                             cuda::optimizer_kernels.scratch_bytes};

inline const AdafactorBlockKernels cuda_adafactor_blocks{
    on_device<&cuda::adafactor_block_kernels, &AdafactorBlockKernels::sums>,
    on_device<&cuda::adafactor_block_kernels, &AdafactorBlockKernels::update_sums>,
    on_device<&cuda::adafactor_block_kernels, &AdafactorBlockKernels::apply>,
    on_device<&cuda::adafactor_block_kernels, &AdafactorBlockKernels::add>,
    cuda::adafactor_block_kernels.scratch_bytes};

inline const RouterKernels cuda_router{on_device<&cuda::router_kernels, &RouterKernels::jitter>,
                                       on_device<&cuda::router_kernels, &RouterKernels::softmax>,
                                       on_device<&cuda::router_kernels, &RouterKernels::top_k>,
                                       on_device<&cuda::router_kernels, &RouterKernels::spread>,
                                       on_device<&cuda::router_kernels, &RouterKernels::weigh>,
                                       on_device<&cuda::router_kernels, &RouterKernels::admit>,
                                       on_device<&cuda::router_kernels, &RouterKernels::count>,
                                       on_device<&cuda::router_kernels, &RouterKernels::assign>,
                                       on_device<&cuda::router_kernels, &RouterKernels::expert_choice>,
                                       on_device<&cuda::router_kernels, &RouterKernels::row_map>,
                                       on_device<&cuda::router_kernels, &RouterKernels::measure>,
                                       on_device<&cuda::router_kernels, &RouterKernels::balance_gradient>,
                                       on_device<&cuda::router_kernels, &RouterKernels::add_claims>,
                                       on_device<&cuda::router_kernels, &RouterKernels::backward>,
                                       cuda::router_kernels.scratch_bytes};

inline const MatmulKernels cuda_matmul{on_device<&cuda::matmul_kernels, &MatmulKernels::product>,
                                       on_device<&cuda::matmul_kernels, &MatmulKernels::grouped>,
                                       on_device<&cuda::matmul_kernels, &MatmulKernels::grouped_weight_gradient>,
                                       nullptr, cuda::matmul_kernels.scratch_bytes};

inline const CrossEntropyKernels cuda_cross_entropy{
    on_device<&cuda::cross_entropy_kernels, &CrossEntropyKernels::forward_backward>,
    cuda::cross_entropy_kernels.scratch_bytes};

inline const AttentionKernels cuda_attention{on_device<&cuda::attention_kernels, &AttentionKernels::forward>,
                                             on_device<&cuda::attention_kernels, &AttentionKernels::backward>,
                                             cuda::attention_kernels.scratch_bytes};

}  // namespace flanmoe::test
