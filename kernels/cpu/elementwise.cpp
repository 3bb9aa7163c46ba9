#include "kernels/elementwise.hpp"

#include <cstring>

#include "kernels/cpu/partition.hpp"
#include "kernels/cpu/vector_math.hpp"
#include "kernels/dispatch.hpp"

namespace flanmoe::cpu {
namespace {

void expect_same_shape(const Tensor& y, const Tensor& x) {
  FLANMOE_EXPECT(y.batch == x.batch && y.rows == x.rows && y.cols == x.cols, "{} x {} x {} against {} x {} x {}",
                 y.batch, y.rows, y.cols, x.batch, x.rows, x.cols);
}

template <class Y, class X>
void convert_in(const Tensor& y_tensor, const Tensor& x_tensor) {
  auto* y = y_tensor.as<Y>();
  const auto* x = x_tensor.as<X>();
  for_pieces(y_tensor.batch * y_tensor.rows, y_tensor.cols, y_tensor.contiguous() && x_tensor.contiguous(),
             [&](std::int64_t r, std::int64_t first, std::int64_t n) {
               Y* to = y + r * y_tensor.stride + first;
               const X* from = x + r * x_tensor.stride + first;
#pragma omp simd
               for (std::int64_t i = 0; i < n; ++i) store(to[i], widen(from[i]));
             });
}

/// fp64 occurs outside of the step only (statistics, checks of a run in double), so it takes the plain road.
void convert(KernelContext& context, const Tensor& y, const Tensor& x) {
  expect_same_shape(y, x);
  if (y.dtype == DType::f64 || x.dtype == DType::f64) {
    reference::elementwise_kernels.convert(context, y, x);
    return;
  }
  with_type<float, bf16>(y, "y", [&]<class Y>(std::type_identity<Y>) {
    with_type<float, bf16>(x, "x", [&]<class X>(std::type_identity<X>) { convert_in<Y, X>(y, x); });
  });
}

void add(KernelContext& /*context*/, const Tensor& y_tensor, const Tensor& x_tensor) {
  expect_same_shape(y_tensor, x_tensor);
  const auto add_to = [&]<class Y, class X>(Y* y, const X* x) {
    for_pieces(y_tensor.batch * y_tensor.rows, y_tensor.cols, y_tensor.contiguous() && x_tensor.contiguous(),
               [&](std::int64_t r, std::int64_t first, std::int64_t n) {
                 Y* to = y + r * y_tensor.stride + first;
                 const X* from = x + r * x_tensor.stride + first;
#pragma omp simd
                 for (std::int64_t i = 0; i < n; ++i) store(to[i], widen(to[i]) + widen(from[i]));
               });
  };
  with_type<float, bf16>(y_tensor, "y", [&]<class Y>(std::type_identity<Y>) {
    with_type<float, bf16>(x_tensor, "x",
                           [&]<class X>(std::type_identity<X>) { add_to(y_tensor.as<Y>(), x_tensor.as<X>()); });
  });
}

void scale(KernelContext& /*context*/, const Tensor& tensor, double factor) {
  with_type<float, bf16, double>(tensor, "x", [&]<class C>(std::type_identity<C>) {
    auto* x = tensor.as<C>();
    const auto by = accumulate_t<C>(factor);
    for_pieces(tensor.batch * tensor.rows, tensor.cols, tensor.contiguous(),
               [&](std::int64_t r, std::int64_t first, std::int64_t n) {
                 C* at = x + r * tensor.stride + first;
#pragma omp simd
                 for (std::int64_t i = 0; i < n; ++i) store(at[i], widen(at[i]) * by);
               });
  });
}

void zero(KernelContext& /*context*/, const Tensor& x) {
  auto* bytes = static_cast<char*>(x.data);
  const auto element = std::int64_t(size_of(x.dtype));
  for_pieces(x.batch * x.rows, x.cols, x.contiguous(), [&](std::int64_t r, std::int64_t first, std::int64_t n) {
    std::memset(bytes + (r * x.stride + first) * element, 0, std::size_t(n * element));
  });
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

}  // namespace flanmoe::cpu
