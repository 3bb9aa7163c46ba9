#include "kernels/norm.hpp"

#include <cmath>

#include "kernels/dispatch.hpp"

namespace flanmoe::reference {
namespace {

/// What is subtracted from x: its mean in LayerNorm, nothing in RMSNorm.
template <bool centered, class A>
A center_of(const A* x, std::int64_t D) {
  if constexpr (!centered) return 0;
  A sum = 0;
  for (std::int64_t c = 0; c < D; ++c) sum += x[c];
  return sum / A(D);
}

template <bool centered, class C>
void forward_in(const Tensor& y_TD, const Tensor& rstd_T, const Tensor& x_TD, const Tensor& scale_D, float epsilon) {
  using A = accumulate_t<C>;
  const std::int64_t D = x_TD.cols;
  const A* scale = scale_D.as<A>();
  for (std::int64_t t = 0; t < x_TD.rows; ++t) {
    const A* x = x_TD.row<A>(t);
    const A center = center_of<centered>(x, D);
    A sum = 0;
    for (std::int64_t c = 0; c < D; ++c) sum += (x[c] - center) * (x[c] - center);
    const A rstd = 1 / std::sqrt(sum / A(D) + A(epsilon));
    if (!rstd_T.absent()) *rstd_T.row<A>(t) = rstd;
    for (std::int64_t c = 0; c < D; ++c) y_TD.row<C>(t)[c] = C((x[c] - center) * rstd * scale[c]);
  }
}

template <bool centered>
void forward(KernelContext& /*context*/, const Tensor& y_TD, const Tensor& rstd_T, const Tensor& x_TD,
             const Tensor& scale_D, float epsilon) {
  const DType a = accumulate_dtype(y_TD.dtype);
  expect_matrix(y_TD, y_TD.dtype, x_TD.rows, x_TD.cols, "y");
  expect_matrix(x_TD, a, x_TD.rows, x_TD.cols, "x");
  expect_matrix(scale_D, a, 1, x_TD.cols, "scale");
  if (!rstd_T.absent()) expect_matrix(rstd_T, a, x_TD.rows, 1, "rstd");
  with_type<float, bf16, double>(y_TD, "y", [&]<class C>(std::type_identity<C>) {
    forward_in<centered, C>(y_TD, rstd_T, x_TD, scale_D, epsilon);
  });
}

/// With xhat = x rstd and g = dy scale: dx = rstd (g - xhat mean(g xhat)), dscale = sum over tokens of dy xhat.
/// LayerNorm: xhat = (x - mean(x)) rstd, and mean(g) is subtracted from g too.
template <bool centered, class C>
void backward_in(const Tensor& dx_TD, const Tensor& dscale_D, const Tensor& dy_TD, const Tensor& x_TD,
                 const Tensor& rstd_T, const Tensor& scale_D) {
  using A = accumulate_t<C>;
  const std::int64_t D = x_TD.cols;
  const A* scale = scale_D.as<A>();
  A* dscale = dscale_D.as<A>();
  for (std::int64_t t = 0; t < x_TD.rows; ++t) {
    const A* x = x_TD.row<A>(t);
    const C* dy = dy_TD.row<C>(t);
    A* dx = dx_TD.row<A>(t);
    const A rstd = *rstd_T.row<A>(t);
    const A center = center_of<centered>(x, D);
    A sum = 0, dot = 0;
    for (std::int64_t c = 0; c < D; ++c) {
      if (centered) sum += widen(dy[c]) * scale[c];
      dot += widen(dy[c]) * scale[c] * (x[c] - center);
    }
    const A mean_g = centered ? sum / A(D) : A(0), mean = dot * rstd / A(D);
    for (std::int64_t c = 0; c < D; ++c) {
      dx[c] += rstd * (widen(dy[c]) * scale[c] - mean_g - (x[c] - center) * rstd * mean);
      if (dscale != nullptr) dscale[c] += widen(dy[c]) * (x[c] - center) * rstd;
    }
  }
}

template <bool centered>
void backward(KernelContext& /*context*/, const Tensor& dx_TD, const Tensor& dscale_D, const Tensor& dy_TD,
              const Tensor& x_TD, const Tensor& rstd_T, const Tensor& scale_D) {
  const DType a = accumulate_dtype(dy_TD.dtype);
  expect_matrix(x_TD, a, dy_TD.rows, dy_TD.cols, "x");
  expect_like(dx_TD, x_TD, "dx");
  expect_matrix(rstd_T, a, dy_TD.rows, 1, "rstd");
  expect_matrix(scale_D, a, 1, dy_TD.cols, "scale");
  if (!dscale_D.absent()) expect_like(dscale_D, scale_D, "dscale");
  with_type<float, bf16, double>(dy_TD, "dy", [&]<class C>(std::type_identity<C>) {
    backward_in<centered, C>(dx_TD, dscale_D, dy_TD, x_TD, rstd_T, scale_D);
  });
}

std::size_t scratch_bytes(std::int64_t /*tokens*/, std::int64_t /*width*/) { return 0; }

}  // namespace

const NormKernels norm_kernels = {forward<false>, backward<false>, scratch_bytes};
const NormKernels layer_norm_kernels = {forward<true>, backward<true>, scratch_bytes};

}  // namespace flanmoe::reference
