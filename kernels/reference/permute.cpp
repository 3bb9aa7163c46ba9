#include "kernels/permute.hpp"

#include <cstring>

#include "kernels/dispatch.hpp"

namespace flanmoe::reference {
namespace {

void* row_at(const Tensor& x, std::int64_t i) { return x.offset_by(i * x.stride).data; }

void gather(KernelContext& /*context*/, const Tensor& y_RD, const Tensor& x_TD, const Tensor& index_R) {
  expect_matrix(index_R, DType::i32, y_RD.rows, 1, "index");
  expect_matrix(y_RD, x_TD.dtype, y_RD.rows, x_TD.cols, "y");
  for (std::int64_t r = 0; r < y_RD.rows; ++r) {
    std::memcpy(row_at(y_RD, r), row_at(x_TD, *index_R.row<std::int32_t>(r)),
                std::size_t(x_TD.cols) * size_of(x_TD.dtype));
  }
}

void scatter(KernelContext& /*context*/, const Tensor& y_TD, const Tensor& x_RD, const Tensor& index_R) {
  expect_matrix(index_R, DType::i32, x_RD.rows, 1, "index");
  expect_matrix(y_TD, x_RD.dtype, y_TD.rows, x_RD.cols, "y");
  for (std::int64_t r = 0; r < x_RD.rows; ++r) {
    std::memcpy(row_at(y_TD, *index_R.row<std::int32_t>(r)), row_at(x_RD, r),
                std::size_t(x_RD.cols) * size_of(x_RD.dtype));
  }
}

void combine_forward(KernelContext& /*context*/, const Tensor& y_TD, const Tensor& row_ND, const Tensor& weight_Tk,
                     const Tensor& slot_Tk) {
  expect_matrix(slot_Tk, DType::i32, y_TD.rows, slot_Tk.cols, "slot");
  expect_matrix(weight_Tk, accumulate_dtype(y_TD.dtype), y_TD.rows, slot_Tk.cols, "weight");
  expect_matrix(row_ND, y_TD.dtype, row_ND.rows, y_TD.cols, "row");
  with_type<float, bf16, double>(y_TD, "y", [&]<class C>(std::type_identity<C>) {
    using A = accumulate_t<C>;
    for (std::int64_t t = 0; t < y_TD.rows; ++t) {
      for (std::int64_t c = 0; c < y_TD.cols; ++c) {
        A sum = 0;
        for (std::int64_t j = 0; j < slot_Tk.cols; ++j) {
          const std::int32_t slot = slot_Tk.row<std::int32_t>(t)[j];
          if (slot >= 0) sum += weight_Tk.row<A>(t)[j] * widen(row_ND.row<C>(slot)[c]);
        }
        y_TD.row<C>(t)[c] = C(sum);
      }
    }
  });
}

void combine_backward(KernelContext& /*context*/, const Tensor& drow_ND, const Tensor& dweight_Tk, const Tensor& dy_TD,
                      const Tensor& row_ND, const Tensor& weight_Tk, const Tensor& slot_Tk) {
  expect_matrix(slot_Tk, DType::i32, dy_TD.rows, slot_Tk.cols, "slot");
  expect_matrix(weight_Tk, accumulate_dtype(dy_TD.dtype), dy_TD.rows, slot_Tk.cols, "weight");
  expect_like(dweight_Tk, weight_Tk, "dweight");
  expect_matrix(row_ND, dy_TD.dtype, row_ND.rows, dy_TD.cols, "row");
  expect_like(drow_ND, row_ND, "drow");
  with_type<float, bf16, double>(dy_TD, "dy", [&]<class C>(std::type_identity<C>) {
    using A = accumulate_t<C>;
    for (std::int64_t t = 0; t < dy_TD.rows; ++t) {
      for (std::int64_t j = 0; j < slot_Tk.cols; ++j) {
        const std::int32_t slot = slot_Tk.row<std::int32_t>(t)[j];
        A dot = 0;
        for (std::int64_t c = 0; slot >= 0 && c < dy_TD.cols; ++c) {
          const A dy = widen(dy_TD.row<C>(t)[c]);
          dot += dy * widen(row_ND.row<C>(slot)[c]);
          drow_ND.row<C>(slot)[c] = C(weight_Tk.row<A>(t)[j] * dy);
        }
        dweight_Tk.row<A>(t)[j] = dot;
      }
    }
  });
}

void gather_sum(KernelContext& /*context*/, const Tensor& dx_TD, const Tensor& drow_ND, const Tensor& slot_Tk,
                const Tensor& base_TD) {
  expect_matrix(slot_Tk, DType::i32, dx_TD.rows, slot_Tk.cols, "slot");
  expect_matrix(drow_ND, dx_TD.dtype, drow_ND.rows, dx_TD.cols, "drow");
  if (!base_TD.absent()) expect_like(base_TD, dx_TD, "base");
  with_type<float, bf16, double>(dx_TD, "dx", [&]<class C>(std::type_identity<C>) {
    for (std::int64_t t = 0; t < dx_TD.rows; ++t) {
      for (std::int64_t c = 0; c < dx_TD.cols; ++c) {
        accumulate_t<C> sum = base_TD.absent() ? 0 : widen(base_TD.row<C>(t)[c]);
        for (std::int64_t j = 0; j < slot_Tk.cols; ++j) {
          const std::int32_t slot = slot_Tk.row<std::int32_t>(t)[j];
          if (slot >= 0) sum += widen(drow_ND.row<C>(slot)[c]);
        }
        dx_TD.row<C>(t)[c] = C(sum);
      }
    }
  });
}

}  // namespace

const PermuteKernels permute_kernels = {gather, scatter, combine_forward, combine_backward, gather_sum};

}  // namespace flanmoe::reference
