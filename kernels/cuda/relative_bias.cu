#include <algorithm>
#include <numeric>
#include <vector>

#include "kernels/cuda/device.cuh"
#include "kernels/cuda/elements.cuh"
#include "kernels/relative_bias.hpp"
#include "kernels/relative_bias_checks.hpp"

namespace flanmoe::cuda {
namespace {

/// The bucket of every offset, from the same function as everywhere: a logarithm of the GPU might round otherwise.
std::vector<std::int32_t> buckets_of(const Tensor& bias_HP, const Tensor& table_UH, bool bidirectional,
                                     int max_distance) {
  std::vector<std::int32_t> bucket(std::size_t(bias_HP.cols), 0);
  const std::int64_t middle = (bias_HP.cols - 1) / 2;
  for (std::int64_t p = 0; p < bias_HP.cols; ++p) {
    bucket[std::size_t(p)] = relative_bucket(p - middle, bidirectional, int(table_UH.rows), max_distance);
  }
  return bucket;
}

__global__ void __launch_bounds__(kThreads)
    expand_buckets(Elements<float> bias, Elements<const float> table, const std::int32_t* bucket, std::int64_t P) {
  const std::int64_t p = std::int64_t(blockIdx.x) * kThreads + threadIdx.x, h = blockIdx.y;
  if (p < P) *bias.at(h, p) = *table.at(bucket[p], h);
}

void expand(KernelContext& context, const Tensor& bias_HP, const Tensor& table_UH, bool bidirectional,
            int max_distance) {
  expect_bias_table(table_UH, bias_HP, bidirectional, max_distance);
  const auto bucket = buckets_of(bias_HP, table_UH, bidirectional, max_distance);
  const std::int32_t* list = upload(context, std::span<const std::int32_t>(bucket));
  launch(expand_buckets, dim3(blocks_for(bias_HP.cols, kThreads), unsigned(bias_HP.rows)), kThreads, 0, context,
         elements<float>(bias_HP), elements<const float>(table_UH), list, bias_HP.cols);
}

/// A block a bucket and head; `offsets` are the offsets in the order of their buckets, `first` where each begins.
__global__ void __launch_bounds__(kThreads) sum_buckets(Elements<float> dtable, Elements<const float> dbias,
                                                        const std::int32_t* offsets, const std::int32_t* first) {
  const std::int64_t bucket = blockIdx.x, h = blockIdx.y;
  float sum = 0.0F;
  for (std::int32_t i = first[bucket] + std::int32_t(threadIdx.x); i < first[bucket + 1]; i += kThreads) {
    sum += *dbias.at(h, offsets[i]);
  }
  sum = block_reduce(sum, shared_memory<float>());
  if (threadIdx.x == 0) *dtable.at(bucket, h) += sum;
}

void gradient(KernelContext& context, const Tensor& dtable_UH, const Tensor& dbias_HP, bool bidirectional,
              int max_distance) {
  expect_bias_table(dtable_UH, dbias_HP, bidirectional, max_distance);
  const auto bucket = buckets_of(dbias_HP, dtable_UH, bidirectional, max_distance);
  std::vector<std::int32_t> offsets(bucket.size()), first(std::size_t(dtable_UH.rows) + 1, 0);
  std::iota(offsets.begin(), offsets.end(), 0);
  std::stable_sort(offsets.begin(), offsets.end(),
                   [&](std::int32_t a, std::int32_t b) { return bucket[std::size_t(a)] < bucket[std::size_t(b)]; });
  for (const std::int32_t b : bucket) ++first[std::size_t(b) + 1];
  std::partial_sum(first.begin(), first.end(), first.begin());
  launch(sum_buckets, dim3(unsigned(dtable_UH.rows), unsigned(dtable_UH.cols)), kThreads,
         block_reduce_bytes<float>(kThreads), context, elements<float>(dtable_UH), elements<const float>(dbias_HP),
         upload(context, std::span<const std::int32_t>(offsets)),
         upload(context, std::span<const std::int32_t>(first)));
}

}  // namespace

const RelativeBiasKernels relative_bias_kernels{expand, gradient};

}  // namespace flanmoe::cuda
