#include "kernels/rotary.hpp"

#include <cmath>

#include "kernels/dispatch.hpp"

namespace flanmoe::reference {
namespace {

void table(KernelContext& /*context*/, const Tensor& table_PK, double base) {
  const std::int64_t half = table_PK.cols / 2;
  with_type<float, double>(table_PK, "table", [&]<class A>(std::type_identity<A>) {
    for (std::int64_t p = 0; p < table_PK.rows; ++p) {
      for (std::int64_t i = 0; i < half; ++i) {
        const double angle = double(p) * std::pow(base, -double(i) / double(half));
        table_PK.row<A>(p)[i] = A(std::cos(angle));
        table_PK.row<A>(p)[half + i] = A(std::sin(angle));
      }
    }
  });
}

/// direction 1 turns, -1 turns back.
void turn(const Tensor& x_TQ, const Tensor& position_T, const Tensor& table_PK, int direction) {
  expect_rotary(x_TQ, position_T, table_PK);
  expect_positions(position_T, table_PK);
  const std::int64_t width = table_PK.cols, half = width / 2;
  with_type<float, bf16, double>(x_TQ, "x", [&]<class C>(std::type_identity<C>) {
    using A = accumulate_t<C>;
    for (std::int64_t t = 0; t < x_TQ.rows; ++t) {
      const A* at = table_PK.row<A>(*position_T.row<std::int32_t>(t));
      for (C* head = x_TQ.row<C>(t); head != x_TQ.row<C>(t) + x_TQ.cols; head += width) {
        for (std::int64_t i = 0; i < half; ++i) {
          const A cosine = at[i], sine = A(direction) * at[half + i];
          const A a = widen(head[i]), b = widen(head[half + i]);
          head[i] = C(a * cosine - b * sine);
          head[half + i] = C(a * sine + b * cosine);
        }
      }
    }
  });
}

void forward(KernelContext& /*context*/, const Tensor& x_TQ, const Tensor& position_T, const Tensor& table_PK) {
  turn(x_TQ, position_T, table_PK, 1);
}
void backward(KernelContext& /*context*/, const Tensor& dx_TQ, const Tensor& position_T, const Tensor& table_PK) {
  turn(dx_TQ, position_T, table_PK, -1);
}

}  // namespace

const RotaryKernels rotary_kernels{table, forward, backward};

}  // namespace flanmoe::reference
