#include "kernels/norm.hpp"

#include <cmath>

#include "kernels/cpu/partition.hpp"
#include "kernels/cpu/vector_math.hpp"
#include "kernels/dispatch.hpp"
#include "kernels/scratch.hpp"

namespace flanmoe::cpu {
namespace {

/// What is subtracted from x: its mean in LayerNorm, nothing in RMSNorm.
template <bool centered>
float center_of(const float* x, std::int64_t D) {
  if constexpr (!centered) return 0.0F;
  return lane_sum<float>(D, [=](std::int64_t c) { return x[c]; }) / float(D);
}

template <bool centered, class C>
float forward_row(C* y, const float* x, const float* scale, std::int64_t D, float epsilon) {
  const float center = center_of<centered>(x, D);
  const float sum = lane_sum<float>(D, [=](std::int64_t c) { return (x[c] - center) * (x[c] - center); });
  const float rstd = 1.0F / std::sqrt(sum / float(D) + epsilon);
#pragma omp simd
  for (std::int64_t c = 0; c < D; ++c) store(y[c], (x[c] - center) * rstd * scale[c]);
  return rstd;
}

template <bool centered, class C>
void forward_in(const Tensor& y_TD, const Tensor& rstd_T, const Tensor& x_TD, const Tensor& scale_D, float epsilon) {
  const auto* x = x_TD.as<float>();
  const auto* scale = scale_D.as<float>();
  auto* y = y_TD.as<C>();
  auto* rstd = rstd_T.as<float>();
  for_blocks(x_TD.rows, 16, x_TD.cols, [&](std::int64_t /*b*/, std::int64_t begin, std::int64_t end) {
    for (std::int64_t t = begin; t < end; ++t) {
      const float r = forward_row<centered>(y + t * y_TD.stride, x + t * x_TD.stride, scale, x_TD.cols, epsilon);
      if (rstd != nullptr) rstd[t * rstd_T.stride] = r;
    }
  });
}

template <bool centered>
void forward(KernelContext& /*context*/, const Tensor& y_TD, const Tensor& rstd_T, const Tensor& x_TD,
             const Tensor& scale_D, float epsilon) {
  expect_matrix(y_TD, y_TD.dtype, x_TD.rows, x_TD.cols, "y");
  expect_matrix(x_TD, DType::f32, x_TD.rows, x_TD.cols, "x");
  expect_matrix(scale_D, DType::f32, 1, x_TD.cols, "scale");
  if (!rstd_T.absent()) expect_matrix(rstd_T, DType::f32, x_TD.rows, 1, "rstd");
  with_type<float, bf16>(y_TD, "y", [&]<class C>(std::type_identity<C>) {
    forward_in<centered, C>(y_TD, rstd_T, x_TD, scale_D, epsilon);
  });
}

template <bool centered, class C>
void backward_row(float* dx, float* dscale, const C* dy, const float* x, const float* scale, float rstd,
                  std::int64_t D) {
  const float center = center_of<centered>(x, D);
  const float dot = lane_sum<float>(D, [=](std::int64_t c) { return widen(dy[c]) * scale[c] * (x[c] - center); });
  const float mean = dot * rstd / float(D);
  float mean_g = 0.0F;
  if (centered) mean_g = lane_sum<float>(D, [=](std::int64_t c) { return widen(dy[c]) * scale[c]; }) / float(D);
#pragma omp simd
  for (std::int64_t c = 0; c < D; ++c) {
    const float xhat = (x[c] - center) * rstd;
    const float g = widen(dy[c]);
    dx[c] += rstd * (g * scale[c] - mean_g - xhat * mean);
    dscale[c] += g * xhat;
  }
}

// The tokens are cut into at most this many blocks; dscale is summed in token order inside a block, then over blocks.
constexpr std::int64_t kBlocks = 64;
constexpr std::int64_t kSmallestBlock = 16;

std::int64_t count_blocks(std::int64_t tokens) {
  const std::int64_t rows = block_rows(tokens, kBlocks, kSmallestBlock);
  return (tokens + rows - 1) / rows;
}

template <bool centered, class C>
void backward_in(float* partial, const Tensor& dx_TD, const Tensor& dscale_D, const Tensor& dy_TD, const Tensor& x_TD,
                 const Tensor& rstd_T, const Tensor& scale_D) {
  const std::int64_t D = x_TD.cols;
  const auto* dy = dy_TD.as<C>();
  const auto* x = x_TD.as<float>();
  const auto* rstd = rstd_T.as<float>();
  const auto* scale = scale_D.as<float>();
  auto* dx = dx_TD.as<float>();
  auto* dscale = dscale_D.as<float>();
  const std::int64_t rows = block_rows(x_TD.rows, kBlocks, kSmallestBlock);
  for_blocks(x_TD.rows, rows, D, [&](std::int64_t b, std::int64_t begin, std::int64_t end) {
    float* sum = partial + b * D;
    std::fill(sum, sum + D, 0.0F);
    for (std::int64_t t = begin; t < end; ++t) {
      backward_row<centered>(dx + t * dx_TD.stride, sum, dy + t * dy_TD.stride, x + t * x_TD.stride, scale,
                             rstd[t * rstd_T.stride], D);
    }
  });
  if (dscale == nullptr) return;  // the partial sums above cost no extra pass
  for (std::int64_t b = 0; b < count_blocks(x_TD.rows); ++b) {
    const float* sum = partial + b * D;
#pragma omp simd
    for (std::int64_t c = 0; c < D; ++c) dscale[c] += sum[c];
  }
}

template <bool centered>
void backward(KernelContext& context, const Tensor& dx_TD, const Tensor& dscale_D, const Tensor& dy_TD,
              const Tensor& x_TD, const Tensor& rstd_T, const Tensor& scale_D) {
  expect_matrix(x_TD, DType::f32, dy_TD.rows, dy_TD.cols, "x");
  expect_like(dx_TD, x_TD, "dx");
  expect_matrix(rstd_T, DType::f32, dy_TD.rows, 1, "rstd");
  expect_matrix(scale_D, DType::f32, 1, dy_TD.cols, "scale");
  if (!dscale_D.absent()) expect_like(dscale_D, scale_D, "dscale");
  ScratchScope scratch(context);
  float* partial = scratch.take<float>(count_blocks(x_TD.rows) * x_TD.cols);
  with_type<float, bf16>(dy_TD, "dy", [&]<class C>(std::type_identity<C>) {
    backward_in<centered, C>(partial, dx_TD, dscale_D, dy_TD, x_TD, rstd_T, scale_D);
  });
}

std::size_t scratch_bytes(std::int64_t tokens, std::int64_t width) {
  // An upper bound that grows with the tokens: fewer tokens may make more blocks.
  return scratch_size<float>(std::min(kBlocks, (tokens + kSmallestBlock - 1) / kSmallestBlock) * width);
}

}  // namespace

const NormKernels norm_kernels = {forward<false>, backward<false>, scratch_bytes};
const NormKernels layer_norm_kernels = {forward<true>, backward<true>, scratch_bytes};

}  // namespace flanmoe::cpu
