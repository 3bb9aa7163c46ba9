#include "kernels/activation.hpp"

#include "kernels/cpu/partition.hpp"
#include "kernels/cpu/vector_math.hpp"
#include "kernels/dispatch.hpp"

namespace flanmoe::cpu {
namespace {

template <class C>
void relu(C* y, const C* x, std::int64_t n) {
#pragma omp simd
  for (std::int64_t i = 0; i < n; ++i) {
    const float value = widen(x[i]);
    store(y[i], value < 0 ? 0.0F : value);
  }
}

template <class C>
void relu_gradient(C* dx, const C* dy, const C* y, std::int64_t n) {
#pragma omp simd
  for (std::int64_t i = 0; i < n; ++i) {
    const float gradient = widen(dy[i]);
    store(dx[i], widen(y[i]) > 0 ? gradient : 0.0F);
  }
}

template <class C>
void gated_gelu(C* y, const C* gate, const C* up, std::int64_t n) {
#pragma omp simd
  for (std::int64_t i = 0; i < n; ++i) {
    const float x = widen(gate[i]);
    const float e = Gelu::decay(x);
    store(y[i], (x < 0 ? x * e : x) * widen(up[i]) / (1.0F + e));
  }
}

/// gelu' = s + x s (1 - s) 2u', 2u' = 2 sqrt(2/pi) (1 + 3 * 0.044715 x^2).
template <class C>
void gated_gelu_gradient(C* dgate, C* dup, const C* dy, const C* gate, const C* up, std::int64_t n) {
#pragma omp simd
  for (std::int64_t i = 0; i < n; ++i) {
    const float x = widen(gate[i]);
    const float gradient = widen(dy[i]);
    const float e = Gelu::decay(x);
    const float larger = 1.0F / (1.0F + e);
    const float smaller = e * larger;
    const float sigmoid = x < 0 ? smaller : larger;
    const float du = Gelu::two_root + 3 * Gelu::two_root * Gelu::cubic * (x * x);
    store(dgate[i], gradient * widen(up[i]) * (sigmoid + x * du * (larger * smaller)));
    store(dup[i], gradient * (x * sigmoid));
  }
}

/// swish(x) = x s with s = 1 / (1 + e^-x).
template <class C>
void gated_swish(C* y, const C* gate, const C* up, std::int64_t n) {
#pragma omp simd
  for (std::int64_t i = 0; i < n; ++i) {
    const float x = widen(gate[i]);
    const float e = Swish::decay(x);
    store(y[i], (x < 0 ? x * e : x) * widen(up[i]) / (1.0F + e));
  }
}

/// swish' = s + x s (1 - s).
template <class C>
void gated_swish_gradient(C* dgate, C* dup, const C* dy, const C* gate, const C* up, std::int64_t n) {
#pragma omp simd
  for (std::int64_t i = 0; i < n; ++i) {
    const float x = widen(gate[i]);
    const float gradient = widen(dy[i]);
    const float e = Swish::decay(x);
    const float larger = 1.0F / (1.0F + e);
    const float smaller = e * larger;
    const float sigmoid = x < 0 ? smaller : larger;
    store(dgate[i], gradient * widen(up[i]) * (sigmoid + x * (larger * smaller)));
    store(dup[i], gradient * (x * sigmoid));
  }
}

void relu_forward(KernelContext& /*context*/, const Tensor& y_TF, const Tensor& x_TF) {
  expect_like(x_TF, y_TF, "x");
  with_type<float, bf16>(y_TF, "y", [&]<class C>(std::type_identity<C>) {
    auto* y = y_TF.as<C>();
    const auto* x = x_TF.as<C>();
    for_pieces(y_TF.rows, y_TF.cols, y_TF.contiguous() && x_TF.contiguous(),
               [&](std::int64_t t, std::int64_t c, std::int64_t n) {
                 relu(y + t * y_TF.stride + c, x + t * x_TF.stride + c, n);
               });
  });
}

void relu_backward(KernelContext& /*context*/, const Tensor& dx_TF, const Tensor& dy_TF, const Tensor& y_TF) {
  expect_like(dy_TF, dx_TF, "dy");
  expect_like(y_TF, dx_TF, "y");
  with_type<float, bf16>(y_TF, "y", [&]<class C>(std::type_identity<C>) {
    auto* dx = dx_TF.as<C>();
    const auto* dy = dy_TF.as<C>();
    const auto* y = y_TF.as<C>();
    for_pieces(y_TF.rows, y_TF.cols, dx_TF.contiguous() && dy_TF.contiguous() && y_TF.contiguous(),
               [&](std::int64_t t, std::int64_t c, std::int64_t n) {
                 relu_gradient(dx + t * dx_TF.stride + c, dy + t * dy_TF.stride + c, y + t * y_TF.stride + c, n);
               });
  });
}

/// The loops of one gated activation, as types so that they are inlined.
struct GeluLoops {
  template <class C>
  static void forward(C* y, const C* gate, const C* up, std::int64_t n) {
    gated_gelu(y, gate, up, n);
  }
  template <class C>
  static void backward(C* dgate, C* dup, const C* dy, const C* gate, const C* up, std::int64_t n) {
    gated_gelu_gradient(dgate, dup, dy, gate, up, n);
  }
};
struct SwishLoops {
  template <class C>
  static void forward(C* y, const C* gate, const C* up, std::int64_t n) {
    gated_swish(y, gate, up, n);
  }
  template <class C>
  static void backward(C* dgate, C* dup, const C* dy, const C* gate, const C* up, std::int64_t n) {
    gated_swish_gradient(dgate, dup, dy, gate, up, n);
  }
};

template <class Loops>
void gated_forward(KernelContext& /*context*/, const Tensor& y_TF, const Tensor& gate_TF, const Tensor& up_TF) {
  expect_like(gate_TF, y_TF, "gate");
  expect_like(up_TF, y_TF, "up");
  with_type<float, bf16>(y_TF, "y", [&]<class C>(std::type_identity<C>) {
    auto* y = y_TF.as<C>();
    const auto* gate = gate_TF.as<C>();
    const auto* up = up_TF.as<C>();
    for_pieces(y_TF.rows, y_TF.cols, y_TF.contiguous() && gate_TF.contiguous() && up_TF.contiguous(),
               [&](std::int64_t t, std::int64_t c, std::int64_t n) {
                 Loops::forward(y + t * y_TF.stride + c, gate + t * gate_TF.stride + c, up + t * up_TF.stride + c, n);
               });
  });
}

template <class Loops>
void gated_backward(KernelContext& /*context*/, const Tensor& dgate_TF, const Tensor& dup_TF, const Tensor& dy_TF,
                    const Tensor& gate_TF, const Tensor& up_TF) {
  bool contiguous = dy_TF.contiguous();
  for (const Tensor* tensor : {&dgate_TF, &dup_TF, &gate_TF, &up_TF}) {
    expect_like(*tensor, dy_TF, "operand");
    contiguous = contiguous && tensor->contiguous();
  }
  with_type<float, bf16>(dy_TF, "dy", [&]<class C>(std::type_identity<C>) {
    auto* dgate = dgate_TF.as<C>();
    auto* dup = dup_TF.as<C>();
    const auto* dy = dy_TF.as<C>();
    const auto* gate = gate_TF.as<C>();
    const auto* up = up_TF.as<C>();
    for_pieces(dy_TF.rows, dy_TF.cols, contiguous, [&](std::int64_t t, std::int64_t c, std::int64_t n) {
      Loops::backward(dgate + t * dgate_TF.stride + c, dup + t * dup_TF.stride + c, dy + t * dy_TF.stride + c,
                      gate + t * gate_TF.stride + c, up + t * up_TF.stride + c, n);
    });
  });
}

}  // namespace

const ActivationKernels activation_kernels = {relu_forward,
                                              relu_backward,
                                              gated_forward<GeluLoops>,
                                              gated_backward<GeluLoops>,
                                              gated_forward<SwishLoops>,
                                              gated_backward<SwishLoops>};

}  // namespace flanmoe::cpu
