#include "kernels/rotary.hpp"

#include <cmath>

#include "kernels/cpu/partition.hpp"
#include "kernels/cpu/vector_math.hpp"
#include "kernels/dispatch.hpp"

namespace flanmoe::cpu {
namespace {

/// In double: an angle is up to the longest sequence, in radians, and fp32 would leave few digits of it.
void table(KernelContext& /*context*/, const Tensor& table_PK, double base) {
  expect_matrix(table_PK, DType::f32, table_PK.rows, table_PK.cols, "table");
  const std::int64_t half = table_PK.cols / 2;
  for_blocks(table_PK.rows, 64, table_PK.cols * 16, [&](std::int64_t /*b*/, std::int64_t begin, std::int64_t end) {
    for (std::int64_t i = 0; i < half; ++i) {
      const double frequency = std::pow(base, -double(i) / double(half));
      for (std::int64_t p = begin; p < end; ++p) {
        table_PK.row<float>(p)[i] = float(std::cos(double(p) * frequency));
        table_PK.row<float>(p)[half + i] = float(std::sin(double(p) * frequency));
      }
    }
  });
}

/// One head: a and b are its two halves.
template <class C>
void turn_head(C* a, C* b, const float* cosine, const float* sine, float direction, std::int64_t half) {
#pragma omp simd
  for (std::int64_t i = 0; i < half; ++i) {
    const float x = widen(a[i]), y = widen(b[i]), s = direction * sine[i];
    store(a[i], x * cosine[i] - y * s);
    store(b[i], x * s + y * cosine[i]);
  }
}

void turn(const Tensor& x_TQ, const Tensor& position_T, const Tensor& table_PK, float direction) {
  expect_rotary(x_TQ, position_T, table_PK);
  expect_positions(position_T, table_PK);
  const std::int64_t width = table_PK.cols, half = width / 2;
  const auto* position = position_T.as<std::int32_t>();
  const auto* tables = table_PK.as<float>();
  with_type<float, bf16>(x_TQ, "x", [&]<class C>(std::type_identity<C>) {
    auto* x = x_TQ.as<C>();
    for_blocks(x_TQ.rows, 16, x_TQ.cols, [&](std::int64_t /*b*/, std::int64_t begin, std::int64_t end) {
      for (std::int64_t t = begin; t < end; ++t) {
        const float* at = tables + position[t * position_T.stride] * table_PK.stride;
        for (std::int64_t c = 0; c < x_TQ.cols; c += width) {
          C* head = x + t * x_TQ.stride + c;
          turn_head(head, head + half, at, at + half, direction, half);
        }
      }
    });
  });
}

void forward(KernelContext& /*context*/, const Tensor& x_TQ, const Tensor& position_T, const Tensor& table_PK) {
  turn(x_TQ, position_T, table_PK, 1.0F);
}
void backward(KernelContext& /*context*/, const Tensor& dx_TQ, const Tensor& position_T, const Tensor& table_PK) {
  turn(dx_TQ, position_T, table_PK, -1.0F);
}

}  // namespace

const RotaryKernels rotary_kernels{table, forward, backward};

}  // namespace flanmoe::cpu
