#include "kernels/cuda/elements.cuh"
#include "kernels/embedding.hpp"

namespace flanmoe::cuda {
namespace {

template <int width, class C>
struct Look {
  Elements<float> y;
  Elements<const C> table;
  Elements<const std::int32_t> ids;
  __device__ void operator()(std::int64_t t, std::int64_t piece) const {
    float v[width];
    load_floats(v, table.at(*ids.at(t, 0), piece * width));
    store_floats(y.at(t, piece * width), v);
  }
};

void forward(KernelContext& context, const Tensor& y_TD, const Tensor& table_VD, const Tensor& ids_T) {
  expect_matrix(ids_T, DType::i32, y_TD.rows, 1, "ids");
  expect_matrix(y_TD, DType::f32, y_TD.rows, table_VD.cols, "y");
  with_type<float, bf16>(table_VD, "table", [&]<class C>(std::type_identity<C>) {
    over_rows(context, {y_TD, table_VD}, [&](auto width) {
      return Look<width, C>{elements<float>(y_TD), elements<const C>(table_VD), elements<const std::int32_t>(ids_T)};
    });
  });
}

constexpr int kColumnsOfThread = 4;
constexpr std::int64_t kColumnsOfBlock = std::int64_t{kThreads} * kColumnsOfThread;

/// Block t does something when token t is the first one with its id: it adds the gradients of all tokens with that id,
/// in token order. So every element is summed by one thread, and nothing is sorted. Reads of ids are quadratic in the
/// tokens at worst, and of a list that stays in the cache.
__global__ void __launch_bounds__(kThreads)
    add_by_id(Elements<float> dtable, Elements<const float> dy, Elements<const std::int32_t> ids, std::int64_t T,
              std::int64_t D) {
  unsigned* votes = shared_memory<unsigned>();  // one word a warp: which of kThreads tokens have the id
  const std::int64_t own = blockIdx.x;
  const std::int32_t id = *ids.at(own, 0);
  for (std::int64_t begin = 0; begin < own; begin += kThreads) {
    const std::int64_t t = begin + threadIdx.x;
    if (__syncthreads_or(t < own && *ids.at(t, 0) == id ? 1 : 0) != 0) return;
  }
  const std::int64_t first = std::int64_t(blockIdx.y) * kColumnsOfBlock + threadIdx.x;
  float sum[kColumnsOfThread];
#pragma unroll
  for (int i = 0; i < kColumnsOfThread; ++i) {
    const std::int64_t c = first + i * kThreads;
    sum[i] = c < D ? *dtable.at(id, c) : 0.0F;
  }
  for (std::int64_t begin = own; begin < T; begin += kThreads) {
    const std::int64_t t = begin + threadIdx.x;
    const unsigned vote = __ballot_sync(kAllLanes, t < T && *ids.at(t, 0) == id ? 1 : 0);
    if (threadIdx.x % kWarp == 0) votes[threadIdx.x / kWarp] = vote;
    __syncthreads();
    for (int w = 0; w < kThreads / kWarp; ++w) {
      for (unsigned left = votes[w]; left != 0; left &= left - 1) {
        const std::int64_t match = begin + w * kWarp + __ffs(int(left)) - 1;
#pragma unroll
        for (int i = 0; i < kColumnsOfThread; ++i) {
          const std::int64_t c = first + i * kThreads;
          if (c < D) sum[i] += *dy.at(match, c);
        }
      }
    }
    __syncthreads();
  }
#pragma unroll
  for (int i = 0; i < kColumnsOfThread; ++i) {
    const std::int64_t c = first + i * kThreads;
    if (c < D) *dtable.at(id, c) = sum[i];
  }
}

void backward(KernelContext& context, const Tensor& dtable_VD, const Tensor& dy_TD, const Tensor& ids_T,
              std::span<const std::int64_t> leaves) {
  FLANMOE_EXPECT(leaves.size() <= 2, "embedding: gradients in leaves are not computed on GPUs");
  expect_matrix(ids_T, DType::i32, dy_TD.rows, 1, "ids");
  expect_matrix(dtable_VD, DType::f32, dtable_VD.rows, dy_TD.cols, "dtable");
  expect_matrix(dy_TD, DType::f32, dy_TD.rows, dy_TD.cols, "dy");
  launch(add_by_id, dim3(unsigned(dy_TD.rows), blocks_for(dy_TD.cols, kColumnsOfBlock)), kThreads,
         sizeof(unsigned) * kThreads / kWarp, context, elements<float>(dtable_VD), elements<const float>(dy_TD),
         elements<const std::int32_t>(ids_T), dy_TD.rows, dy_TD.cols);
}

std::size_t scratch_bytes(std::int64_t /*tokens*/) { return 0; }

}  // namespace

const EmbeddingKernels embedding_kernels = {forward, backward, scratch_bytes};

}  // namespace flanmoe::cuda
