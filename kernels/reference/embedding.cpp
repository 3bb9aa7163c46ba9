#include "kernels/embedding.hpp"

#include "kernels/dispatch.hpp"

namespace flanmoe::reference {
namespace {

void forward(KernelContext& /*context*/, const Tensor& y_TD, const Tensor& table_VD, const Tensor& ids_T) {
  expect_matrix(ids_T, DType::i32, y_TD.rows, 1, "ids");
  expect_matrix(y_TD, accumulate_dtype(table_VD.dtype), y_TD.rows, table_VD.cols, "y");
  with_type<float, bf16, double>(table_VD, "table", [&]<class C>(std::type_identity<C>) {
    for (std::int64_t t = 0; t < y_TD.rows; ++t) {
      const C* from = table_VD.row<C>(*ids_T.row<std::int32_t>(t));
      for (std::int64_t c = 0; c < y_TD.cols; ++c) y_TD.row<accumulate_t<C>>(t)[c] = widen(from[c]);
    }
  });
}

void backward(KernelContext& /*context*/, const Tensor& dtable_VD, const Tensor& dy_TD, const Tensor& ids_T) {
  expect_matrix(ids_T, DType::i32, dy_TD.rows, 1, "ids");
  expect_matrix(dy_TD, dtable_VD.dtype, dy_TD.rows, dtable_VD.cols, "dy");
  with_type<float, double>(dtable_VD, "dtable", [&]<class A>(std::type_identity<A>) {
    for (std::int64_t t = 0; t < dy_TD.rows; ++t) {
      A* to = dtable_VD.row<A>(*ids_T.row<std::int32_t>(t));
      for (std::int64_t c = 0; c < dy_TD.cols; ++c) to[c] += dy_TD.row<A>(t)[c];
    }
  });
}

}  // namespace

const EmbeddingKernels embedding_kernels = {forward, backward};

}  // namespace flanmoe::reference
