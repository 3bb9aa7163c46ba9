// Loops over the elements of matrices, for operations that treat every element alike: 16 bytes an access where all
// operands allow it, single elements otherwise.
#pragma once

#include <algorithm>
#include <initializer_list>
#include <utility>

#include "kernels/cuda/device.cuh"

namespace flanmoe::cuda {

/// `width` elements as floats.
template <int width, class T>
__device__ inline void load_floats(float (&x)[width], const T* at) {
  if constexpr (width == 1) {
    x[0] = load_as_float(*at);
  } else {
    static_assert(width % Pack<T>::size == 0);
#pragma unroll
    for (int p = 0; p < width; p += Pack<T>::size) {
      const Pack<T> pack = load_pack(at + p);
#pragma unroll
      for (int i = 0; i < Pack<T>::size; ++i) x[p + i] = load_as_float(pack.value[i]);
    }
  }
}
template <int width, class T>
__device__ inline void store_floats(T* at, const float (&x)[width]) {
  if constexpr (width == 1) {
    *at = round_to<T>(x[0]);
  } else {
#pragma unroll
    for (int p = 0; p < width; p += Pack<T>::size) {
      Pack<T> pack;
#pragma unroll
      for (int i = 0; i < Pack<T>::size; ++i) pack.value[i] = round_to<T>(x[p + i]);
      store_pack(at + p, pack);
    }
  }
}

/// The elements of a matrix, as kernels get them.
template <class T>
struct Elements {
  T* data = nullptr;
  std::int64_t stride = 0;
  __device__ T* at(std::int64_t row, std::int64_t col) const { return data + row * stride + col; }
};
template <class T>
Elements<T> elements(const Tensor& x) {
  return {x.as<std::remove_const_t<T>>(), x.stride};
}

/// f(row, piece) for every piece of every row.
template <class Index, class F>
__global__ void __launch_bounds__(kThreads) over_pieces(F f, Index pieces, Index per_row) {
  const Index step = Index(gridDim.x) * Index(blockDim.x);
  for (Index i = Index(blockIdx.x) * Index(blockDim.x) + Index(threadIdx.x); i < pieces; i += step) {
    f(std::int64_t(i / per_row), std::int64_t(i % per_row));
  }
}

/// Has the functor that `make(std::integral_constant<int, width>)` returns called for (row, first column / width) of
/// all rows of the first operand. `width`: elements of an access, 8 where every operand allows it, else 1. `flat`:
/// operands without gaps between their rows are one row.
template <class Make>
void over_elements(KernelContext& context, std::initializer_list<Tensor> operands, Make&& make, bool flat = true) {
  const Tensor& shape = *operands.begin();
  std::int64_t rows = shape.batch * shape.rows, cols = shape.cols;
  for (const Tensor& x : operands) flat = flat && x.contiguous();
  if (flat) cols *= std::exchange(rows, 1);
  bool wide = cols % 8 == 0;
  for (const Tensor& x : operands) {
    // The narrowest type sets the width: 8 is one access of bf16 and two of fp32.
    wide = wide && x.dtype != DType::f64 && reinterpret_cast<std::uintptr_t>(x.data) % 16 == 0 &&
           (flat || (x.stride % 8 == 0 && x.cols % 8 == 0));
  }
  if (rows == 0 || cols == 0) return;
  const auto run = [&](auto width) {
    const std::int64_t per_row = cols / width, pieces = rows * per_row;
    auto f = make(width);
    const dim3 grid(striding_blocks(pieces, kThreads));
    if (pieces < (std::int64_t{1} << 31)) {  // divisions of 32 bits are quicker
      launch(over_pieces<std::uint32_t, decltype(f)>, grid, kThreads, 0, context, f, std::uint32_t(pieces),
             std::uint32_t(per_row));
    } else {
      launch(over_pieces<std::int64_t, decltype(f)>, grid, kThreads, 0, context, f, pieces, per_row);
    }
  };
  if (wide) {
    run(std::integral_constant<int, 8>{});
  } else {
    run(std::integral_constant<int, 1>{});
  }
}
/// The same for functors to which rows mean something.
template <class Make>
void over_rows(KernelContext& context, std::initializer_list<Tensor> operands, Make&& make) {
  over_elements(context, operands, make, false);
}

}  // namespace flanmoe::cuda
