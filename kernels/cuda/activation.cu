#include "kernels/activation.hpp"
#include "kernels/cuda/elements.cuh"

namespace flanmoe::cuda {
namespace {

/// gelu and swish are x s with s = 1 / (1 + e^-u). With e = e^-|u|, one of s and 1 - s is 1 / (1 + e) and the other one
/// e / (1 + e): neither cancels anywhere.
struct Gelu {
  static constexpr float two_root = 1.59576912160573071F;  // 2 sqrt(2/pi)
  static constexpr float cubic = 0.044715F;
  static constexpr float log2e = 1.44269504088896341F;

  /// e^-|u| with u = 2 sqrt(2/pi) (x + 0.044715 x^3), not below 2^-126.
  __device__ static float decay(float x) {
    const float exponent = x * (two_root * log2e + two_root * log2e * cubic * (x * x));
    return exp2f(-fminf(fabsf(exponent), 126.0F));
  }
  /// du / dx.
  __device__ static float slope(float x) { return two_root + 3 * two_root * cubic * (x * x); }
};
struct Swish {
  __device__ static float decay(float x) { return exp2f(-fminf(fabsf(x * 1.44269504088896341F), 126.0F)); }
  __device__ static float slope(float /*x*/) { return 1.0F; }
};

template <int width, class T>
struct Relu {
  Elements<T> y;
  Elements<const T> x;
  __device__ void operator()(std::int64_t row, std::int64_t piece) const {
    float v[width];
    load_floats(v, x.at(row, piece * width));
#pragma unroll
    for (int i = 0; i < width; ++i) v[i] = v[i] < 0 ? 0.0F : v[i];  // NaN stays
    store_floats(y.at(row, piece * width), v);
  }
};

template <int width, class T>
struct ReluGradient {
  Elements<T> dx;
  Elements<const T> dy, y;
  __device__ void operator()(std::int64_t row, std::int64_t piece) const {
    float gradient[width], v[width];
    load_floats(gradient, dy.at(row, piece * width));
    load_floats(v, y.at(row, piece * width));
#pragma unroll
    for (int i = 0; i < width; ++i) gradient[i] = v[i] > 0 ? gradient[i] : 0.0F;
    store_floats(dx.at(row, piece * width), gradient);
  }
};

template <int width, class T, class Gate>
struct Gated {
  Elements<T> y;
  Elements<const T> gate, up;
  __device__ void operator()(std::int64_t row, std::int64_t piece) const {
    float x[width], u[width];
    load_floats(x, gate.at(row, piece * width));
    load_floats(u, up.at(row, piece * width));
#pragma unroll
    for (int i = 0; i < width; ++i) {
      const float e = Gate::decay(x[i]);
      u[i] = (x[i] < 0 ? x[i] * e : x[i]) * u[i] / (1.0F + e);
    }
    store_floats(y.at(row, piece * width), u);
  }
};

/// (x s)' = s + x s (1 - s) du/dx.
template <int width, class T, class Gate>
struct GatedGradient {
  Elements<T> dgate, dup;
  Elements<const T> dy, gate, up;
  __device__ void operator()(std::int64_t row, std::int64_t piece) const {
    float x[width], u[width], gradient[width];
    load_floats(x, gate.at(row, piece * width));
    load_floats(u, up.at(row, piece * width));
    load_floats(gradient, dy.at(row, piece * width));
#pragma unroll
    for (int i = 0; i < width; ++i) {
      const float e = Gate::decay(x[i]);
      const float larger = 1.0F / (1.0F + e), smaller = e * larger;
      const float sigmoid = x[i] < 0 ? smaller : larger;
      u[i] = gradient[i] * u[i] * (sigmoid + x[i] * Gate::slope(x[i]) * (larger * smaller));
      gradient[i] *= x[i] * sigmoid;
    }
    store_floats(dgate.at(row, piece * width), u);
    store_floats(dup.at(row, piece * width), gradient);
  }
};

void relu_forward(KernelContext& context, const Tensor& y_TF, const Tensor& x_TF) {
  expect_like(x_TF, y_TF, "x");
  with_type<float, bf16>(y_TF, "y", [&]<class T>(std::type_identity<T>) {
    over_elements(context, {y_TF, x_TF}, [&](auto width) {
      return Relu<width, T>{elements<T>(y_TF), elements<const T>(x_TF)};
    });
  });
}

void relu_backward(KernelContext& context, const Tensor& dx_TF, const Tensor& dy_TF, const Tensor& y_TF) {
  expect_like(dy_TF, dx_TF, "dy");
  expect_like(y_TF, dx_TF, "y");
  with_type<float, bf16>(y_TF, "y", [&]<class T>(std::type_identity<T>) {
    over_elements(context, {dx_TF, dy_TF, y_TF}, [&](auto width) {
      return ReluGradient<width, T>{elements<T>(dx_TF), elements<const T>(dy_TF), elements<const T>(y_TF)};
    });
  });
}

template <class Gate>
void gated_forward(KernelContext& context, const Tensor& y_TF, const Tensor& gate_TF, const Tensor& up_TF) {
  expect_like(gate_TF, y_TF, "gate");
  expect_like(up_TF, y_TF, "up");
  with_type<float, bf16>(y_TF, "y", [&]<class T>(std::type_identity<T>) {
    over_elements(context, {y_TF, gate_TF, up_TF}, [&](auto width) {
      return Gated<width, T, Gate>{elements<T>(y_TF), elements<const T>(gate_TF), elements<const T>(up_TF)};
    });
  });
}

template <class Gate>
void gated_backward(KernelContext& context, const Tensor& dgate_TF, const Tensor& dup_TF, const Tensor& dy_TF,
                    const Tensor& gate_TF, const Tensor& up_TF) {
  for (const Tensor* operand : {&dgate_TF, &dup_TF, &gate_TF, &up_TF}) expect_like(*operand, dy_TF, "operand");
  with_type<float, bf16>(dy_TF, "dy", [&]<class T>(std::type_identity<T>) {
    over_elements(context, {dgate_TF, dup_TF, dy_TF, gate_TF, up_TF}, [&](auto width) {
      return GatedGradient<width, T, Gate>{elements<T>(dgate_TF), elements<T>(dup_TF), elements<const T>(dy_TF),
                                           elements<const T>(gate_TF), elements<const T>(up_TF)};
    });
  });
}

}  // namespace

const ActivationKernels activation_kernels = {relu_forward,         relu_backward,        gated_forward<Gelu>,
                                              gated_backward<Gelu>, gated_forward<Swish>, gated_backward<Swish>};

}  // namespace flanmoe::cuda
