#include "kernels/permute.hpp"

#include <cstring>

#include "kernels/cpu/partition.hpp"
#include "kernels/cpu/vector_math.hpp"
#include "kernels/dispatch.hpp"

namespace flanmoe::cpu {
namespace {

constexpr std::int64_t kTokens = 16;  // tokens of one piece of work
constexpr std::int64_t kTile = 512;   // columns summed at one time, in the first-level cache

void gather(KernelContext& /*context*/, const Tensor& y_RD, const Tensor& x_TD, const Tensor& index_R) {
  expect_matrix(index_R, DType::i32, y_RD.rows, 1, "index");
  expect_matrix(y_RD, x_TD.dtype, y_RD.rows, x_TD.cols, "y");
  const auto element = std::int64_t(size_of(x_TD.dtype));
  const auto* index = index_R.as<std::int32_t>();
  auto* y = static_cast<char*>(y_RD.data);
  const auto* x = static_cast<const char*>(x_TD.data);
  for_blocks(y_RD.rows, kTokens, x_TD.cols, [&](std::int64_t /*b*/, std::int64_t begin, std::int64_t end) {
    for (std::int64_t r = begin; r < end; ++r) {
      std::memcpy(y + r * y_RD.stride * element, x + index[r * index_R.stride] * x_TD.stride * element,
                  std::size_t(x_TD.cols * element));
    }
  });
}

void scatter(KernelContext& /*context*/, const Tensor& y_TD, const Tensor& x_RD, const Tensor& index_R) {
  expect_matrix(index_R, DType::i32, x_RD.rows, 1, "index");
  expect_matrix(y_TD, x_RD.dtype, y_TD.rows, x_RD.cols, "y");
  const auto element = std::int64_t(size_of(x_RD.dtype));
  const auto* index = index_R.as<std::int32_t>();
  auto* y = static_cast<char*>(y_TD.data);
  const auto* x = static_cast<const char*>(x_RD.data);
  for_blocks(x_RD.rows, kTokens, x_RD.cols, [&](std::int64_t /*b*/, std::int64_t begin, std::int64_t end) {
    for (std::int64_t r = begin; r < end; ++r) {
      std::memcpy(y + index[r * index_R.stride] * y_TD.stride * element, x + r * x_RD.stride * element,
                  std::size_t(x_RD.cols * element));
    }
  });
}

template <class C>
void add_scaled(float* sum, float weight, const C* row, std::int64_t n) {
#pragma omp simd
  for (std::int64_t c = 0; c < n; ++c) sum[c] += weight * widen(row[c]);
}
template <class C>
void add_row(float* sum, const C* row, std::int64_t n) {
#pragma omp simd
  for (std::int64_t c = 0; c < n; ++c) sum[c] += widen(row[c]);
}
template <class C>
void store_row(C* y, const float* sum, std::int64_t n) {
#pragma omp simd
  for (std::int64_t c = 0; c < n; ++c) store(y[c], sum[c]);
}

/// y[t] = the tile sums that `gather_tile(sum, t, first, count)` leaves in `sum`, which starts at 0.
template <class C, class F>
void for_summed_tiles(const Tensor& y_TD, F&& gather_tile) {
  auto* y = y_TD.as<C>();
  for_blocks(y_TD.rows, kTokens, y_TD.cols, [&](std::int64_t /*b*/, std::int64_t begin, std::int64_t end) {
    alignas(64) std::array<float, kTile> sum;
    for (std::int64_t t = begin; t < end; ++t) {
      for (std::int64_t first = 0; first < y_TD.cols; first += kTile) {
        const std::int64_t n = std::min(kTile, y_TD.cols - first);
        std::fill(sum.begin(), sum.begin() + n, 0.0F);
        gather_tile(sum.data(), t, first, n);
        store_row(y + t * y_TD.stride + first, sum.data(), n);
      }
    }
  });
}

void combine_forward(KernelContext& /*context*/, const Tensor& y_TD, const Tensor& row_ND, const Tensor& weight_Tk,
                     const Tensor& slot_Tk) {
  expect_matrix(slot_Tk, DType::i32, y_TD.rows, slot_Tk.cols, "slot");
  expect_matrix(weight_Tk, DType::f32, y_TD.rows, slot_Tk.cols, "weight");
  expect_matrix(row_ND, y_TD.dtype, row_ND.rows, y_TD.cols, "row");
  const auto* slots = slot_Tk.as<std::int32_t>();
  const auto* weights = weight_Tk.as<float>();
  with_type<float, bf16>(y_TD, "y", [&]<class C>(std::type_identity<C>) {
    const auto* rows = row_ND.as<C>();
    for_summed_tiles<C>(y_TD, [&](float* sum, std::int64_t t, std::int64_t first, std::int64_t n) {
      for (std::int64_t j = 0; j < slot_Tk.cols; ++j) {
        const std::int32_t slot = slots[t * slot_Tk.stride + j];
        if (slot >= 0) add_scaled(sum, weights[t * weight_Tk.stride + j], rows + slot * row_ND.stride + first, n);
      }
    });
  });
}

template <class C>
float weigh_and_dot(C* drow, const C* dy, const C* row, float weight, std::int64_t D) {
#pragma omp simd
  for (std::int64_t c = 0; c < D; ++c) store(drow[c], weight * widen(dy[c]));
  return lane_sum<float>(D, [=](std::int64_t c) { return widen(dy[c]) * widen(row[c]); });
}

void combine_backward(KernelContext& /*context*/, const Tensor& drow_ND, const Tensor& dweight_Tk, const Tensor& dy_TD,
                      const Tensor& row_ND, const Tensor& weight_Tk, const Tensor& slot_Tk) {
  expect_matrix(slot_Tk, DType::i32, dy_TD.rows, slot_Tk.cols, "slot");
  expect_matrix(weight_Tk, DType::f32, dy_TD.rows, slot_Tk.cols, "weight");
  expect_like(dweight_Tk, weight_Tk, "dweight");
  expect_matrix(row_ND, dy_TD.dtype, row_ND.rows, dy_TD.cols, "row");
  expect_like(drow_ND, row_ND, "drow");
  const auto* slots = slot_Tk.as<std::int32_t>();
  const auto* weights = weight_Tk.as<float>();
  auto* dweights = dweight_Tk.as<float>();
  with_type<float, bf16>(dy_TD, "dy", [&]<class C>(std::type_identity<C>) {
    auto* drows = drow_ND.as<C>();
    const auto* dy = dy_TD.as<C>();
    const auto* rows = row_ND.as<C>();
    for_blocks(dy_TD.rows, kTokens, dy_TD.cols, [&](std::int64_t /*b*/, std::int64_t begin, std::int64_t end) {
      for (std::int64_t t = begin; t < end; ++t) {
        for (std::int64_t j = 0; j < slot_Tk.cols; ++j) {
          const std::int32_t slot = slots[t * slot_Tk.stride + j];
          dweights[t * dweight_Tk.stride + j] =
              slot < 0 ? 0.0F
                       : weigh_and_dot(drows + slot * drow_ND.stride, dy + t * dy_TD.stride,
                                       rows + slot * row_ND.stride, weights[t * weight_Tk.stride + j], dy_TD.cols);
        }
      }
    });
  });
}

void gather_sum(KernelContext& /*context*/, const Tensor& dx_TD, const Tensor& drow_ND, const Tensor& slot_Tk,
                const Tensor& base_TD) {
  expect_matrix(slot_Tk, DType::i32, dx_TD.rows, slot_Tk.cols, "slot");
  expect_matrix(drow_ND, dx_TD.dtype, drow_ND.rows, dx_TD.cols, "drow");
  if (!base_TD.absent()) expect_like(base_TD, dx_TD, "base");
  const auto* slots = slot_Tk.as<std::int32_t>();
  with_type<float, bf16>(dx_TD, "dx", [&]<class C>(std::type_identity<C>) {
    const auto* rows = drow_ND.as<C>();
    const auto* base = base_TD.absent() ? nullptr : base_TD.as<C>();
    for_summed_tiles<C>(dx_TD, [&](float* sum, std::int64_t t, std::int64_t first, std::int64_t n) {
      if (base != nullptr) add_row(sum, base + t * base_TD.stride + first, n);
      for (std::int64_t j = 0; j < slot_Tk.cols; ++j) {
        const std::int32_t slot = slots[t * slot_Tk.stride + j];
        if (slot >= 0) add_row(sum, rows + slot * drow_ND.stride + first, n);
      }
    });
  });
}

}  // namespace

const PermuteKernels permute_kernels = {gather, scatter, combine_forward, combine_backward, gather_sum};

}  // namespace flanmoe::cpu
