#include "kernels/column_scale.hpp"

#include "kernels/dispatch.hpp"

namespace flanmoe::reference {
namespace {

void forward(KernelContext& /*context*/, const Tensor& y_RF, const Tensor& x_RF, const Tensor& scale_eF,
             std::span<const std::int64_t> first) {
  expect_column_scale(y_RF, x_RF, scale_eF, first);
  with_type<float, bf16, double>(x_RF, "x", [&]<class C>(std::type_identity<C>) {
    for (std::int64_t g = 0; g < scale_eF.batch; ++g) {
      const auto* scale = scale_eF.matrix(g).as<accumulate_t<C>>();
      for (std::int64_t r = first[std::size_t(g)]; r < first[std::size_t(g) + 1]; ++r) {
        for (std::int64_t f = 0; f < x_RF.cols; ++f) y_RF.row<C>(r)[f] = C(widen(x_RF.row<C>(r)[f]) * scale[f]);
      }
    }
  });
}

void backward(KernelContext& /*context*/, const Tensor& dx_RF, std::span<const Tensor> dscale_F, const Tensor& dy_RF,
              const Tensor& x_RF, const Tensor& scale_eF, std::span<const std::int64_t> first) {
  expect_column_scale(dx_RF, x_RF, scale_eF, first);
  expect_like(dy_RF, x_RF, "dy");
  with_type<float, bf16, double>(x_RF, "x", [&]<class C>(std::type_identity<C>) {
    using A = accumulate_t<C>;
    for (std::int64_t g = 0; g < scale_eF.batch; ++g) {
      const A* scale = scale_eF.matrix(g).as<A>();
      expect_matrix(dscale_F[std::size_t(g)], scale_eF.dtype, 1, x_RF.cols, "dscale");
      A* dscale = dscale_F[std::size_t(g)].as<A>();
      for (std::int64_t f = 0; f < x_RF.cols; ++f) {
        A sum = 0;
        for (std::int64_t r = first[std::size_t(g)]; r < first[std::size_t(g) + 1]; ++r) {
          const A dy = widen(dy_RF.row<C>(r)[f]);
          sum += dy * widen(x_RF.row<C>(r)[f]);
          dx_RF.row<C>(r)[f] = C(dy * scale[f]);
        }
        dscale[f] += sum;
      }
    }
  });
}

}  // namespace

const ColumnScaleKernels column_scale_kernels = {forward, backward};

}  // namespace flanmoe::reference
