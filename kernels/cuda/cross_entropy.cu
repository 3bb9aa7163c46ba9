// The logits of a chunk of tokens are one product; one block a token reads its row twice, for the loss and for the
// gradient, which two more products carry to x and w.
#include <algorithm>

#include "kernels/cross_entropy.hpp"
#include "kernels/cross_entropy_checks.hpp"
#include "kernels/cuda/elements.cuh"
#include "kernels/elementwise.hpp"

namespace flanmoe::cuda {
namespace {

/// What is known of some of the logits: the largest, the first place where it is, the sum of exponentials above it.
struct Part {
  float largest, sum;
  int place;  // -1: of no logits
};
__device__ inline Part merge(Part a, Part b) {
  if (b.place < 0) return a;
  if (a.place < 0) return b;
  const bool first = a.largest > b.largest || (a.largest == b.largest && a.place < b.place);
  const float largest = first ? a.largest : b.largest;
  return {largest, a.sum * expf(a.largest - largest) + b.sum * expf(b.largest - largest), first ? a.place : b.place};
}

struct Row {
  Elements<float> nll, z, hit;
  Elements<const std::int32_t> target;
  const float* logits;  // rows x vocabulary
  std::int64_t first;   // token of row 0
  int vocabulary;
  float logit_scale, z_coefficient, gradient_scale;
};

/// Loss of the row of this block; returns the logsumexp to every thread.
__device__ inline float loss_of_row(const Row& o, const float* logit) {
  Part* of_warp = shared_memory<Part>();
  Part part{0, 0, -1};
  for (int v = int(threadIdx.x); v < o.vocabulary; v += kThreads) {
    const float x = o.logit_scale * logit[v];
    if (part.place < 0 || x > part.largest) {
      part = {x, part.place < 0 ? 1.0F : part.sum * expf(part.largest - x) + 1, v};
    } else {
      part.sum += expf(x - part.largest);
    }
  }
#pragma unroll
  for (int bits = kWarp / 2; bits > 0; bits /= 2) {
    const Part other{__shfl_xor_sync(kAllLanes, part.largest, bits), __shfl_xor_sync(kAllLanes, part.sum, bits),
                     __shfl_xor_sync(kAllLanes, part.place, bits)};
    // In the same order on both sides, so that both have the same bits.
    part = (int(threadIdx.x) & bits) == 0 ? merge(part, other) : merge(other, part);
  }
  if (int(threadIdx.x) % kWarp == 0) of_warp[threadIdx.x / kWarp] = part;
  __syncthreads();
  part = of_warp[0];
  for (int w = 1; w < kThreads / kWarp; ++w) part = merge(part, of_warp[w]);
  const float log_z = part.largest + logf(part.sum);
  if (threadIdx.x == 0) {
    const std::int64_t t = o.first + blockIdx.x;
    const std::int32_t target = *o.target.at(t, 0);
    // The host cannot look at a target before it is used: one that is no word makes the loss NaN.
    const bool known = target >= 0 && target < o.vocabulary;
    *o.nll.at(t, 0) = known ? log_z - o.logit_scale * logit[target] : __int_as_float(0x7fc00000);
    *o.z.at(t, 0) = o.z_coefficient * log_z * log_z;
    *o.hit.at(t, 0) = part.place == target ? 1.0F : 0.0F;
  }
  return log_z;
}

/// dlogit may be the memory of the logits: a thread writes what it has read.
template <class C, bool with_gradient>
__global__ void __launch_bounds__(kThreads) loss_kernel(Row o, C* dlogits) {
  const float* logit = o.logits + std::int64_t(blockIdx.x) * o.vocabulary;
  const float log_z = loss_of_row(o, logit);
  if constexpr (with_gradient) {
    __syncthreads();  // behind thread 0, which reads the logit of the target
    const std::int32_t target = *o.target.at(o.first + blockIdx.x, 0);
    const float factor = 1 + 2 * o.z_coefficient * log_z, scale = o.gradient_scale * o.logit_scale;
    C* dlogit = dlogits + std::int64_t(blockIdx.x) * o.vocabulary;
    for (int v = int(threadIdx.x); v < o.vocabulary; v += kThreads) {
      const float softmax = expf(o.logit_scale * logit[v] - log_z);
      dlogit[v] = round_to<C>(scale * (factor * softmax - (v == target ? 1.0F : 0.0F)));
    }
  }
}

struct Operands {
  const Tensor &nll_T, &z_T, &hit_T, &dx_TD, &dw, &x_TD, &w, &target_T;
};

template <class C>
void forward_backward_in(KernelContext& context, const Operands& o, const CrossEntropyShape& shape) {
  const bool tied = shape.transpose_w == Transpose::yes, gradients = !o.dx_TD.absent();
  const std::int64_t V = vocabulary_of(o.w, shape), chunk = std::min(shape.chunk_rows, o.x_TD.rows);
  DeviceScratch scratch(context);
  float* logits = scratch.take<float>(chunk * V);
  C* dlogits = nullptr;
  if constexpr (std::is_same_v<C, float>) {
    dlogits = logits;
  } else if (gradients) {
    dlogits = scratch.take<C>(chunk * V);
  }
  const auto product = matmul_kernels.product;
  for (std::int64_t first = 0; first < o.x_TD.rows; first += chunk) {
    const std::int64_t rows = std::min(chunk, o.x_TD.rows - first);
    const Tensor x = o.x_TD.slice_rows(first, rows);
    product(context, make_tensor(logits, rows, V), x, Transpose::no, o.w, shape.transpose_w, 0);
    const Row row{elements<float>(o.nll_T),
                  elements<float>(o.z_T),
                  elements<float>(o.hit_T),
                  elements<const std::int32_t>(o.target_T),
                  logits,
                  first,
                  int(V),
                  float(shape.logit_scale),
                  float(shape.z_coefficient),
                  float(shape.gradient_scale)};
    const std::size_t shared = sizeof(Part) * (kThreads / kWarp);
    launch(gradients ? loss_kernel<C, true> : loss_kernel<C, false>, unsigned(rows), kThreads, shared, context, row,
           dlogits);
    if (!gradients) continue;
    const Tensor dlogit = make_tensor(dlogits, rows, V);
    product(context, o.dx_TD.slice_rows(first, rows), dlogit, Transpose::no, o.w, tied ? Transpose::no : Transpose::yes,
            0);
    if (o.dw.absent()) continue;
    product(context, o.dw, tied ? dlogit : x, Transpose::yes, tied ? x : dlogit, Transpose::no,
            first == 0 ? shape.beta : 1);
  }
}

void forward_backward(KernelContext& context, const Tensor& nll_T, const Tensor& z_T, const Tensor& hit_T,
                      const Tensor& dx_TD, const Tensor& dw, const Tensor& x_TD, const Tensor& w,
                      const Tensor& target_T, const CrossEntropyShape& shape) {
  check_cross_entropy(nll_T, z_T, hit_T, dx_TD, dw, x_TD, w, target_T, shape);
  FLANMOE_EXPECT(shape.leaves.size() <= 2, "loss: gradients in leaves are not computed on GPUs");
  if (x_TD.rows == 0) {
    if (!dx_TD.absent() && !dw.absent() && shape.beta == 0) elementwise_kernels.zero(context, dw);
    return;
  }
  with_type<float, bf16>(x_TD, "x", [&]<class C>(std::type_identity<C>) {
    forward_backward_in<C>(context, {nll_T, z_T, hit_T, dx_TD, dw, x_TD, w, target_T}, shape);
  });
}

std::size_t scratch_bytes(std::int64_t tokens, std::int64_t vocabulary, DType compute, const CrossEntropyShape& shape) {
  const std::int64_t chunk = std::min(shape.chunk_rows, tokens);
  return scratch_size<float>(chunk * vocabulary) +
         (compute == DType::bf16 ? scratch_size<bf16>(chunk * vocabulary) : 0) + matmul_kernels.scratch_bytes();
}

}  // namespace

const CrossEntropyKernels cross_entropy_kernels{forward_backward, scratch_bytes};

}  // namespace flanmoe::cuda
