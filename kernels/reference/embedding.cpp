#include "kernels/embedding.hpp"

#include <vector>

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

/// Tokens [first, last), one after the other.
template <class A>
void add_tokens(const Tensor& dtable_VD, const Tensor& dy_TD, const Tensor& ids_T, std::int64_t first,
                std::int64_t last) {
  for (std::int64_t t = first; t < last; ++t) {
    A* to = dtable_VD.row<A>(*ids_T.row<std::int32_t>(t));
    for (std::int64_t c = 0; c < dy_TD.cols; ++c) to[c] += dy_TD.row<A>(t)[c];
  }
}

/// The sums of leaves [first, first + count) as a table of its own.
template <class A>
std::vector<A> leaf_tables(const Tensor& dtable_VD, const Tensor& dy_TD, const Tensor& ids_T,
                           std::span<const std::int64_t> leaves, std::size_t first, std::size_t count) {
  if (count == 1) {
    std::vector<A> table(std::size_t(dtable_VD.rows * dtable_VD.cols), A(0));
    add_tokens<A>(make_tensor(table.data(), dtable_VD.rows, dtable_VD.cols), dy_TD, ids_T, leaves[first],
                  leaves[first + 1]);
    return table;
  }
  auto sum = leaf_tables<A>(dtable_VD, dy_TD, ids_T, leaves, first, count / 2);
  const auto right = leaf_tables<A>(dtable_VD, dy_TD, ids_T, leaves, first + count / 2, count / 2);
  for (std::size_t i = 0; i < sum.size(); ++i) sum[i] += right[i];
  return sum;
}

void backward(KernelContext& /*context*/, const Tensor& dtable_VD, const Tensor& dy_TD, const Tensor& ids_T,
              std::span<const std::int64_t> leaves) {
  expect_matrix(ids_T, DType::i32, dy_TD.rows, 1, "ids");
  expect_matrix(dy_TD, dtable_VD.dtype, dy_TD.rows, dtable_VD.cols, "dy");
  expect_token_leaves(leaves, dy_TD.rows);
  with_type<float, double>(dtable_VD, "dtable", [&]<class A>(std::type_identity<A>) {
    if (leaves.size() <= 2) {
      add_tokens<A>(dtable_VD, dy_TD, ids_T, 0, dy_TD.rows);
      return;
    }
    const auto sum = leaf_tables<A>(dtable_VD, dy_TD, ids_T, leaves, 0, leaves.size() - 1);
    for (std::int64_t v = 0; v < dtable_VD.rows; ++v) {
      for (std::int64_t c = 0; c < dtable_VD.cols; ++c) {
        dtable_VD.row<A>(v)[c] += sum[std::size_t(v * dtable_VD.cols + c)];
      }
    }
  });
}

std::size_t scratch_bytes(std::int64_t /*tokens*/) { return 0; }

}  // namespace

const EmbeddingKernels embedding_kernels = {forward, backward, scratch_bytes};

}  // namespace flanmoe::reference
