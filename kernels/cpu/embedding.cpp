#include "kernels/embedding.hpp"

#include "kernels/cpu/partition.hpp"
#include "kernels/dispatch.hpp"

namespace flanmoe::cpu {
namespace {

void forward(KernelContext& /*context*/, const Tensor& y_TD, const Tensor& table_VD, const Tensor& ids_T) {
  expect_matrix(ids_T, DType::i32, y_TD.rows, 1, "ids");
  expect_matrix(y_TD, DType::f32, y_TD.rows, table_VD.cols, "y");
  const auto* ids = ids_T.as<std::int32_t>();
  auto* y = y_TD.as<float>();
  with_type<float, bf16>(table_VD, "table", [&]<class C>(std::type_identity<C>) {
    const auto* table = table_VD.as<C>();
    for_blocks(y_TD.rows, 16, y_TD.cols, [&](std::int64_t /*b*/, std::int64_t begin, std::int64_t end) {
      for (std::int64_t t = begin; t < end; ++t) {
        const C* from = table + ids[t * ids_T.stride] * table_VD.stride;
        float* to = y + t * y_TD.stride;
        const std::int64_t D = y_TD.cols;
#pragma omp simd
        for (std::int64_t c = 0; c < D; ++c) to[c] = widen(from[c]);
      }
    });
  });
}

/// Threads own columns, and each walks all tokens in order: no two threads touch an element, no sorting is needed, and
/// every element is summed in token order.
void backward(KernelContext& /*context*/, const Tensor& dtable_VD, const Tensor& dy_TD, const Tensor& ids_T) {
  expect_matrix(ids_T, DType::i32, dy_TD.rows, 1, "ids");
  expect_matrix(dtable_VD, DType::f32, dtable_VD.rows, dy_TD.cols, "dtable");
  expect_matrix(dy_TD, DType::f32, dy_TD.rows, dy_TD.cols, "dy");
  const auto* ids = ids_T.as<std::int32_t>();
  const auto* dy = dy_TD.as<float>();
  auto* dtable = dtable_VD.as<float>();
  constexpr std::int64_t columns = 128;
  for_blocks(dy_TD.cols, columns, dy_TD.rows, [&](std::int64_t /*b*/, std::int64_t begin, std::int64_t end) {
    for (std::int64_t t = 0; t < dy_TD.rows; ++t) {
      float* to = dtable + ids[t * ids_T.stride] * dtable_VD.stride;
      const float* from = dy + t * dy_TD.stride;
#pragma omp simd
      for (std::int64_t c = begin; c < end; ++c) to[c] += from[c];
    }
  });
}

}  // namespace

const EmbeddingKernels embedding_kernels = {forward, backward};

}  // namespace flanmoe::cpu
