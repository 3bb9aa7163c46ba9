#include "kernels/column_scale.hpp"

#include "kernels/cpu/partition.hpp"
#include "kernels/cpu/vector_math.hpp"
#include "kernels/dispatch.hpp"

namespace flanmoe::cpu {
namespace {

constexpr std::int64_t kTile = 256;  // columns of one piece of work
constexpr std::int64_t kRows = 64;   // rows that are summed on their own

template <class C>
void scale_row(C* y, const C* x, const float* scale, std::int64_t n) {
#pragma omp simd
  for (std::int64_t f = 0; f < n; ++f) store(y[f], widen(x[f]) * scale[f]);
}

void forward(KernelContext& /*context*/, const Tensor& y_RF, const Tensor& x_RF, const Tensor& scale_eF,
             std::span<const std::int64_t> first) {
  expect_column_scale(y_RF, x_RF, scale_eF, first);
  with_type<float, bf16>(x_RF, "x", [&]<class C>(std::type_identity<C>) {
    for_blocks(x_RF.rows, 16, x_RF.cols, [&](std::int64_t /*b*/, std::int64_t begin, std::int64_t end) {
      std::int64_t g = std::upper_bound(first.begin(), first.end(), begin) - first.begin() - 1;
      for (std::int64_t r = begin; r < end; ++r) {
        while (r >= first[std::size_t(g) + 1]) ++g;
        scale_row(y_RF.row<C>(r), x_RF.row<C>(r), scale_eF.matrix(g).as<float>(), x_RF.cols);
      }
    });
  });
}

template <class C>
void backward_row(C* dx, float* sum, const C* dy, const C* x, const float* scale, std::int64_t n) {
#pragma omp simd
  for (std::int64_t f = 0; f < n; ++f) {
    const float g = widen(dy[f]);
    sum[f] += g * widen(x[f]);
    store(dx[f], g * scale[f]);
  }
}

void backward(KernelContext& /*context*/, const Tensor& dx_RF, std::span<const Tensor> dscale_F, const Tensor& dy_RF,
              const Tensor& x_RF, const Tensor& scale_eF, std::span<const std::int64_t> first) {
  expect_column_scale(dx_RF, x_RF, scale_eF, first);
  expect_like(dy_RF, x_RF, "dy");
  for (const Tensor& dscale : dscale_F) expect_matrix(dscale, DType::f32, 1, x_RF.cols, "dscale");
  const std::int64_t tiles = (x_RF.cols + kTile - 1) / kTile;
  with_type<float, bf16>(x_RF, "x", [&]<class C>(std::type_identity<C>) {
    // Rows in their order inside blocks, then blocks in their order, whoever computes them.
    for_blocks(scale_eF.batch * tiles, 1, kTile * x_RF.rows, [&](std::int64_t i, std::int64_t, std::int64_t) {
      const std::int64_t g = i / tiles, f = i % tiles * kTile;
      const std::int64_t n = std::min(kTile, x_RF.cols - f);
      const float* scale = scale_eF.matrix(g).as<float>() + f;
      float* dscale = dscale_F[std::size_t(g)].as<float>() + f;
      alignas(64) std::array<float, kTile> sum;
      const std::int64_t last = first[std::size_t(g) + 1];
      for (std::int64_t begin = first[std::size_t(g)]; begin < last; begin += kRows) {
        std::fill(sum.begin(), sum.begin() + n, 0.0F);
        for (std::int64_t r = begin; r < std::min(last, begin + kRows); ++r) {
          backward_row(dx_RF.row<C>(r) + f, sum.data(), dy_RF.row<C>(r) + f, x_RF.row<C>(r) + f, scale, n);
        }
        for (std::int64_t c = 0; c < n; ++c) dscale[c] += sum[std::size_t(c)];
      }
    });
  });
}

}  // namespace

const ColumnScaleKernels column_scale_kernels = {forward, backward};

}  // namespace flanmoe::cpu
