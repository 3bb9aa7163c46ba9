// The table of operations of one device. The model calls `k.norm.forward(...)` and never names a device.
//
// Types. A run computes in C = f32, bf16 or f64 (the last one on the reference device only, for tests) and accumulates
// in A = f32 for f32 and bf16, f64 for f64. Each declaration says which operand is C and which is A.
// Order of arguments: context, outputs, inputs, weights, sizes. Backward: gradients in the order of the forward's
// inputs, then the incoming gradient, then what was saved.
// Accumulation: parameter gradients and gradients of the residual stream are added to (+=), those of matrices with a
// beta that says whether (0: written, whatever they held); every other output is written (=). Zero rows are legal
// everywhere. Operands never overlap unless the declaration allows it. Determinism: results never depend on the number
// of threads.
#pragma once

#include <string>

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
#include "kernels/optimizer.hpp"
#include "kernels/permute.hpp"
#include "kernels/relative_bias.hpp"
#include "kernels/rotary.hpp"
#include "kernels/router.hpp"
#include "kernels/transfer.hpp"

namespace flanmoe {

struct Kernels {
  const char* device;
  const TransferKernels& transfer;
  const MatmulKernels& matmul;
  const NormKernels& norm;
  const NormKernels& layer_norm;
  const AttentionKernels& attention;
  const RelativeBiasKernels& relative_bias;
  const RotaryKernels& rotary;
  const ActivationKernels& activation;
  const ColumnScaleKernels& column_scale;
  const DropoutKernels& dropout;
  const EmbeddingKernels& embedding;
  const CrossEntropyKernels& cross_entropy;
  const RouterKernels& router;
  const PermuteKernels& permute;
  const OptimizerKernels& optimizer;
  const AdafactorBlockKernels& adafactor_blocks;
  const ElementwiseKernels& elementwise;
};

/// "reference", "cpu" or "cuda"; throws UsageError naming the known devices otherwise, and for "cuda" in a program that
/// was built without it.
const Kernels& kernels_for(const std::string& device);

/// The operations of kernels/cuda; null in a program that was built without them.
const Kernels* cuda_kernels();

}  // namespace flanmoe
