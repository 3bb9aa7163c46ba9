#include <cmath>
#include <vector>

#include "kernels/cuda/elements.cuh"
#include "kernels/rotary.hpp"

namespace flanmoe::cuda {
namespace {

/// Made by the host: in double, since an angle is up to the longest sequence, in radians, and a GPU's sine of such
/// angles takes memory. One copy, where rows lie behind one another.
void table(KernelContext& context, const Tensor& table_PK, double base) {
  expect_matrix(table_PK, DType::f32, table_PK.rows, table_PK.cols, "table");
  const std::int64_t cols = table_PK.cols, half = cols / 2;
  std::vector<double> frequency(static_cast<std::size_t>(half));
  for (std::int64_t i = 0; i < half; ++i) frequency[std::size_t(i)] = std::pow(base, -double(i) / double(half));
  std::vector<float> values(std::size_t(table_PK.size()), 0.0F);
  for (std::int64_t p = 0; p < table_PK.rows; ++p) {
    for (std::int64_t i = 0; i < half; ++i) {
      const double angle = double(p) * frequency[std::size_t(i)];
      values[std::size_t(p * cols + i)] = float(std::cos(angle));
      values[std::size_t(p * cols + half + i)] = float(std::sin(angle));
    }
  }
  const std::int64_t rows_at_once = table_PK.contiguous() ? table_PK.rows : 1;
  for (std::int64_t p = 0; p < table_PK.rows; p += rows_at_once) {
    context.staging->upload(stream_of(context), table_PK.row<float>(p), values.data() + p * cols,
                            std::size_t(rows_at_once * cols) * sizeof(float));
  }
}

/// A piece is `width` columns of the first half of a head and the same of the second.
template <int width, class C>
struct Turn {
  Elements<C> x;
  Elements<const std::int32_t> position;
  Elements<const float> table;
  std::int64_t half;
  float direction;
  __device__ void operator()(std::int64_t t, std::int64_t piece) const {
    const std::int64_t of_head = half / width, head = piece / of_head, i = piece % of_head * width;
    C* a = x.at(t, head * 2 * half + i);
    C* b = a + half;
    const float* at = table.at(*position.at(t, 0), i);
    float va[width], vb[width], cosine[width], sine[width];
    load_floats(va, a);
    load_floats(vb, b);
    load_floats(cosine, at);
    load_floats(sine, at + half);
#pragma unroll
    for (int j = 0; j < width; ++j) {
      const float s = direction * sine[j], turned = va[j] * cosine[j] - vb[j] * s;
      vb[j] = va[j] * s + vb[j] * cosine[j];
      va[j] = turned;
    }
    store_floats(a, va);
    store_floats(b, vb);
  }
};

void turn(KernelContext& context, const Tensor& x_TQ, const Tensor& position_T, const Tensor& table_PK,
          float direction) {
  expect_rotary(x_TQ, position_T, table_PK);
  const std::int64_t half = table_PK.cols / 2;
  // Half a matrix has as many columns as there are pairs, and halves of heads begin on 16 bytes if it does.
  Tensor pairs = x_TQ, half_table = table_PK;
  pairs.cols = x_TQ.cols / 2;
  half_table.cols = half;
  with_type<float, bf16>(x_TQ, "x", [&]<class C>(std::type_identity<C>) {
    over_rows(context, {pairs, half_table}, [&](auto width) {
      return Turn<width, C>{elements<C>(x_TQ), elements<const std::int32_t>(position_T),
                            elements<const float>(table_PK), half, direction};
    });
  });
}

void forward(KernelContext& context, const Tensor& x_TQ, const Tensor& position_T, const Tensor& table_PK) {
  turn(context, x_TQ, position_T, table_PK, 1.0F);
}
void backward(KernelContext& context, const Tensor& dx_TQ, const Tensor& position_T, const Tensor& table_PK) {
  turn(context, dx_TQ, position_T, table_PK, -1.0F);
}

}  // namespace

const RotaryKernels rotary_kernels{table, forward, backward};

}  // namespace flanmoe::cuda
