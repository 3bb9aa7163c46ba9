#include "kernels/elementwise.hpp"

#include <cmath>
#include <cstring>

#include "kernels/dispatch.hpp"

namespace flanmoe::reference {
namespace {

void expect_same_shape(const Tensor& y, const Tensor& x) {
  FLANMOE_EXPECT(y.batch == x.batch && y.rows == x.rows && y.cols == x.cols, "{} x {} x {} against {} x {} x {}",
                 y.batch, y.rows, y.cols, x.batch, x.rows, x.cols);
}

float round_to(double x, std::type_identity<float>) { return float(x); }
double round_to(double x, std::type_identity<double>) { return x; }
/// fp64 to bf16 in one rounding: the step through fp32 rounds to odd, which keeps the second rounding right.
bf16 round_to(double x, std::type_identity<bf16>) {
  float nearest = float(x);
  if (double(nearest) == x || !std::isfinite(nearest)) return bf16(nearest);
  if (std::abs(double(nearest)) > std::abs(x)) nearest = std::nextafter(nearest, 0.0F);
  return bf16(std::bit_cast<float>(std::bit_cast<std::uint32_t>(nearest) | 1U));
}

void convert(KernelContext& /*context*/, const Tensor& y, const Tensor& x) {
  expect_same_shape(y, x);
  with_type<float, bf16, double>(y, "y", [&]<class Y>(std::type_identity<Y> type) {
    with_type<float, bf16, double>(x, "x", [&]<class X>(std::type_identity<X>) {
      for (std::int64_t r = 0; r < y.batch * y.rows; ++r) {
        for (std::int64_t c = 0; c < y.cols; ++c) y.row<Y>(r)[c] = round_to(double(widen(x.row<X>(r)[c])), type);
      }
    });
  });
}

void add(KernelContext& /*context*/, const Tensor& y, const Tensor& x) {
  expect_same_shape(y, x);
  with_type<float, bf16, double>(y, "y", [&]<class Y>(std::type_identity<Y>) {
    with_type<float, bf16, double>(x, "x", [&]<class X>(std::type_identity<X>) {
      for (std::int64_t r = 0; r < y.batch * y.rows; ++r) {
        for (std::int64_t c = 0; c < y.cols; ++c) {
          y.row<Y>(r)[c] = Y(widen(y.row<Y>(r)[c]) + accumulate_t<Y>(widen(x.row<X>(r)[c])));
        }
      }
    });
  });
}

void scale(KernelContext& /*context*/, const Tensor& x, double factor) {
  with_type<float, bf16, double>(x, "x", [&]<class C>(std::type_identity<C>) {
    for (std::int64_t r = 0; r < x.batch * x.rows; ++r) {
      for (std::int64_t c = 0; c < x.cols; ++c) x.row<C>(r)[c] = C(widen(x.row<C>(r)[c]) * accumulate_t<C>(factor));
    }
  });
}

void zero(KernelContext& /*context*/, const Tensor& x) {
  for (std::int64_t r = 0; r < x.batch * x.rows; ++r) {
    std::memset(x.offset_by(r * x.stride).data, 0, std::size_t(x.cols) * size_of(x.dtype));
  }
}

void sum(KernelContext& /*context*/, const Tensor& sum, const Tensor& x) {
  expect_matrix(sum, DType::f64, 1, 1, "sum");
  expect_matrix(x, x.dtype, x.rows, 1, "x");
  with_type<float, bf16, double>(x, "x", [&]<class X>(std::type_identity<X>) {
    double total = 0;
    for (std::int64_t r = 0; r < x.rows; ++r) total += double(widen(*x.row<X>(r)));
    *sum.as<double>() = total;
  });
}

}  // namespace

const ElementwiseKernels elementwise_kernels = {convert, add, scale, zero, sum};

}  // namespace flanmoe::reference
