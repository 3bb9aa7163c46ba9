#include <cmath>

#include "kernels/cuda/elements.cuh"
#include "kernels/cuda/philox.cuh"
#include "kernels/dropout.hpp"
#include "kernels/elementwise.hpp"

namespace flanmoe::cuda {
namespace {

struct Mask {
  PhiloxKey key;
  std::uint32_t threshold;  // keep where the word is not below it
  std::int64_t columns_per_mask;
  const std::int64_t* row_T;
  const std::int32_t* position_T;
  float factor;

  /// x / (1 - rate) where kept, else 0, for columns [first, first + width) of a token.
  template <int width>
  __device__ void apply(float (&x)[width], std::int64_t token, std::int64_t first) const {
    const auto row = std::uint64_t(row_T[token]);
    const auto position = std::uint32_t(position_T[token]);
    std::uint32_t words[4] = {};
    std::int64_t held = -1;
#pragma unroll
    for (int i = 0; i < width; ++i) {
      const std::int64_t word = columns_per_mask == 1 ? first + i : (first + i) / columns_per_mask;
      if (word / 4 != held) {
        held = word / 4;
        philox_block(words, key, row, position, std::uint32_t(held));
      }
      const int w = int(word % 4);
      const std::uint32_t value = w == 0 ? words[0] : w == 1 ? words[1] : w == 2 ? words[2] : words[3];
      x[i] = value >= threshold ? x[i] * factor : 0.0F;
    }
  }
};

template <int width, class T>
struct Apply {
  Elements<T> y;
  Elements<const T> x;
  Mask mask;
  __device__ void operator()(std::int64_t row, std::int64_t piece) const {
    float v[width];
    load_floats(v, x.at(row, piece * width));
    mask.apply(v, row, piece * width);
    store_floats(y.at(row, piece * width), v);
  }
};

template <int width, class T>
struct AddMasked {
  Elements<float> residual;
  Elements<const T> x;
  Mask mask;
  __device__ void operator()(std::int64_t row, std::int64_t piece) const {
    float v[width], sum[width];
    load_floats(v, x.at(row, piece * width));
    load_floats(sum, residual.at(row, piece * width));
    mask.apply(v, row, piece * width);
#pragma unroll
    for (int i = 0; i < width; ++i) sum[i] += v[i];
    store_floats(residual.at(row, piece * width), sum);
  }
};

Mask on_device(KernelContext& context, const DropoutMask& mask, std::int64_t tokens) {
  FLANMOE_EXPECT(mask.rate > 0 && mask.rate < 1, "dropout rate {}", mask.rate);
  FLANMOE_EXPECT(mask.columns_per_mask > 0, "{} columns per mask", mask.columns_per_mask);
  FLANMOE_EXPECT(std::int64_t(mask.row_T.size()) == tokens && std::int64_t(mask.position_T.size()) == tokens,
                 "{} rows and {} positions for {} tokens", mask.row_T.size(), mask.position_T.size(), tokens);
  // word / 2^32 >= rate as integers: exact, since rate * 2^32 is exact in double.
  return {PhiloxKey(mask.key),
          std::uint32_t(std::ceil(double(mask.rate) * 0x1p32)),
          mask.columns_per_mask,
          upload(context, mask.row_T),
          upload(context, mask.position_T),
          1.0F / (1.0F - mask.rate)};
}

void apply(KernelContext& context, const Tensor& y_TD, const Tensor& x_TD, const DropoutMask& mask) {
  expect_like(y_TD, x_TD, "y");
  if (mask.rate == 0) {
    if (y_TD.data != x_TD.data) elementwise_kernels.convert(context, y_TD, x_TD);
    return;
  }
  const Mask m = on_device(context, mask, x_TD.rows);
  with_type<float, bf16>(x_TD, "x", [&]<class T>(std::type_identity<T>) {
    over_rows(context, {y_TD, x_TD}, [&](auto width) {
      return Apply<width, T>{elements<T>(y_TD), elements<const T>(x_TD), m};
    });
  });
}

void add(KernelContext& context, const Tensor& residual_TD, const Tensor& x_TD, const DropoutMask& mask) {
  expect_matrix(residual_TD, DType::f32, x_TD.rows, x_TD.cols, "residual");
  if (mask.rate == 0) {
    elementwise_kernels.add(context, residual_TD, x_TD);
    return;
  }
  const Mask m = on_device(context, mask, x_TD.rows);
  with_type<float, bf16>(x_TD, "x", [&]<class T>(std::type_identity<T>) {
    over_rows(context, {residual_TD, x_TD}, [&](auto width) {
      return AddMasked<width, T>{elements<float>(residual_TD), elements<const T>(x_TD), m};
    });
  });
}

}  // namespace

const DropoutKernels dropout_kernels = {apply, add};

}  // namespace flanmoe::cuda
