// T5's bucketed relative position bias (paper facts 4.1).
#pragma once

#include "kernels/context.hpp"
#include "tensor/tensor.hpp"

namespace flanmoe {

/// Bucket of n = query position - key position. Bidirectional: half of the buckets for keys after the query (n < 0).
/// Causal: n = max(n, 0). The first half of the (remaining) buckets is exact, the rest logarithmic up to max_distance:
/// min(nb-1, max_exact + int(ln(n/max_exact + eps)/ln(max_distance/max_exact)*(nb-max_exact))), eps = fp32 epsilon,
/// truncation toward zero; computed in fp32 as T5X does.
int relative_bucket(std::int64_t n, bool bidirectional, int num_buckets, int max_distance);

struct RelativeBiasKernels {
  /// bias_HP[h][n + (P-1)/2] = table_UH[relative_bucket(n)][h] for n in [-(P-1)/2, (P-1)/2]; U buckets; all A.
  void (*expand)(KernelContext&, const Tensor& bias_HP, const Tensor& table_UH, bool bidirectional, int max_distance);
  /// dtable_UH += the sum of dbias_HP over the offsets of each bucket.
  void (*gradient)(KernelContext&, const Tensor& dtable_UH, const Tensor& dbias_HP, bool bidirectional,
                   int max_distance);
};

}  // namespace flanmoe

namespace flanmoe::reference {
extern const RelativeBiasKernels relative_bias_kernels;
}
namespace flanmoe::cpu {
extern const RelativeBiasKernels relative_bias_kernels;
}
namespace flanmoe::cuda {
extern const RelativeBiasKernels relative_bias_kernels;
}
