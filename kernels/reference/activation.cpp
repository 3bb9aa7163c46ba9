#include "kernels/activation.hpp"

#include <cmath>

#include "kernels/dispatch.hpp"

namespace flanmoe::reference {
namespace {

template <class C, class F>
void for_each_element(const Tensor& shape, F&& f) {
  for (std::int64_t t = 0; t < shape.rows; ++t) {
    for (std::int64_t c = 0; c < shape.cols; ++c) f(t, c);
  }
}

void relu_forward(KernelContext& /*context*/, const Tensor& y_TF, const Tensor& x_TF) {
  expect_like(x_TF, y_TF, "x");
  with_type<float, bf16, double>(y_TF, "y", [&]<class C>(std::type_identity<C>) {
    for_each_element<C>(y_TF, [&](std::int64_t t, std::int64_t c) {
      const C x = x_TF.row<C>(t)[c];
      y_TF.row<C>(t)[c] = widen(x) < 0 ? C(0) : x;
    });
  });
}

void relu_backward(KernelContext& /*context*/, const Tensor& dx_TF, const Tensor& dy_TF, const Tensor& y_TF) {
  expect_like(dy_TF, dx_TF, "dy");
  expect_like(y_TF, dx_TF, "y");
  with_type<float, bf16, double>(y_TF, "y", [&]<class C>(std::type_identity<C>) {
    for_each_element<C>(y_TF, [&](std::int64_t t, std::int64_t c) {
      dx_TF.row<C>(t)[c] = widen(y_TF.row<C>(t)[c]) > 0 ? dy_TF.row<C>(t)[c] : C(0);
    });
  });
}

struct Gate {
  double value, slope;
};

/// gelu(x) = x/2 (1 + tanh(u)) with u = sqrt(2/pi) (x + 0.044715 x^3), and its derivative. In double for every type,
/// since 1 + tanh(u) cancels below zero.
Gate gelu(double x) {
  const double root = 0.79788456080286535588;
  const double cubic = 0.044715;
  const double tanh_u = std::tanh(root * (x + cubic * x * x * x));
  const double du = root * (1 + 3 * cubic * x * x);
  return {x / 2 * (1 + tanh_u), (1 + tanh_u) / 2 + x / 2 * (1 - tanh_u * tanh_u) * du};
}

/// swish(x) = x s with s = 1 / (1 + e^-x), and its derivative s + x s (1 - s).
Gate swish(double x) {
  const double s = 1 / (1 + std::exp(-x));
  return {x * s, s + x * s * (1 - s)};
}

template <Gate (*gate_of)(double)>
void gated_forward(KernelContext& /*context*/, const Tensor& y_TF, const Tensor& gate_TF, const Tensor& up_TF) {
  expect_like(gate_TF, y_TF, "gate");
  expect_like(up_TF, y_TF, "up");
  with_type<float, bf16, double>(y_TF, "y", [&]<class C>(std::type_identity<C>) {
    for_each_element<C>(y_TF, [&](std::int64_t t, std::int64_t c) {
      const double gate = gate_of(widen(gate_TF.row<C>(t)[c])).value;
      y_TF.row<C>(t)[c] = C(accumulate_t<C>(gate * widen(up_TF.row<C>(t)[c])));
    });
  });
}

template <Gate (*gate_of)(double)>
void gated_backward(KernelContext& /*context*/, const Tensor& dgate_TF, const Tensor& dup_TF, const Tensor& dy_TF,
                    const Tensor& gate_TF, const Tensor& up_TF) {
  for (const Tensor* tensor : {&dgate_TF, &dup_TF, &gate_TF, &up_TF}) expect_like(*tensor, dy_TF, "operand");
  with_type<float, bf16, double>(dy_TF, "dy", [&]<class C>(std::type_identity<C>) {
    for_each_element<C>(dy_TF, [&](std::int64_t t, std::int64_t c) {
      const double dy = widen(dy_TF.row<C>(t)[c]);
      const Gate g = gate_of(widen(gate_TF.row<C>(t)[c]));
      dgate_TF.row<C>(t)[c] = C(accumulate_t<C>(dy * widen(up_TF.row<C>(t)[c]) * g.slope));
      dup_TF.row<C>(t)[c] = C(accumulate_t<C>(dy * g.value));
    });
  });
}

}  // namespace

const ActivationKernels activation_kernels = {relu_forward,         relu_backward,        gated_forward<gelu>,
                                              gated_backward<gelu>, gated_forward<swish>, gated_backward<swish>};

}  // namespace flanmoe::reference
