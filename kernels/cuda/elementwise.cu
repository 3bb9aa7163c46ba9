#include "kernels/cuda/elements.cuh"
#include "kernels/elementwise.hpp"

namespace flanmoe::cuda {
namespace {

void expect_same_shape(const Tensor& y, const Tensor& x) {
  FLANMOE_EXPECT(y.batch == x.batch && y.rows == x.rows && y.cols == x.cols, "{} x {} x {} against {} x {} x {}",
                 y.batch, y.rows, y.cols, x.batch, x.rows, x.cols);
}

template <int width, class Y, class X>
struct Convert {
  Elements<Y> y;
  Elements<const X> x;
  __device__ void operator()(std::int64_t row, std::int64_t piece) const {
    float v[width];
    load_floats(v, x.at(row, piece * width));
    store_floats(y.at(row, piece * width), v);
  }
};

/// To bf16 in one rounding: the fp32 in between is rounded to odd, so that it is never the tie that the number is not.
__device__ inline bf16 round_double(double x) {
  float toward_zero = __double2float_rz(x);
  if (double(toward_zero) != x && x == x) toward_zero = __uint_as_float(__float_as_uint(toward_zero) | 1U);
  return round_to<bf16>(toward_zero);
}

/// With fp64 on one side or both: outside of the step only.
template <class Y, class X>
struct ConvertDouble {
  Elements<Y> y;
  Elements<const X> x;
  __device__ void operator()(std::int64_t row, std::int64_t col) const {
    const X v = *x.at(row, col);
    if constexpr (std::is_same_v<X, bf16>) {
      *y.at(row, col) = Y(load_as_float(v));
    } else if constexpr (std::is_same_v<Y, bf16>) {
      *y.at(row, col) = round_double(double(v));
    } else {
      *y.at(row, col) = Y(v);
    }
  }
};

template <class Y, class X>
void convert_in(KernelContext& context, const Tensor& y, const Tensor& x) {
  over_elements(context, {y, x}, [&]([[maybe_unused]] auto width) {
    if constexpr (std::is_same_v<Y, double> || std::is_same_v<X, double>) {
      return ConvertDouble<Y, X>{elements<Y>(y), elements<const X>(x)};
    } else {
      return Convert<width, Y, X>{elements<Y>(y), elements<const X>(x)};
    }
  });
}

void convert(KernelContext& context, const Tensor& y, const Tensor& x) {
  expect_same_shape(y, x);
  with_type<float, bf16, double>(y, "y", [&]<class Y>(std::type_identity<Y>) {
    with_type<float, bf16, double>(x, "x", [&]<class X>(std::type_identity<X>) { convert_in<Y, X>(context, y, x); });
  });
}

template <int width, class Y, class X>
struct Add {
  Elements<Y> y;
  Elements<const X> x;
  __device__ void operator()(std::int64_t row, std::int64_t piece) const {
    float sum[width], v[width];
    load_floats(sum, y.at(row, piece * width));
    load_floats(v, x.at(row, piece * width));
#pragma unroll
    for (int i = 0; i < width; ++i) sum[i] += v[i];
    store_floats(y.at(row, piece * width), sum);
  }
};

void add(KernelContext& context, const Tensor& y, const Tensor& x) {
  expect_same_shape(y, x);
  with_type<float, bf16>(y, "y", [&]<class Y>(std::type_identity<Y>) {
    with_type<float, bf16>(x, "x", [&]<class X>(std::type_identity<X>) {
      over_elements(context, {y, x}, [&](auto width) {
        return Add<width, Y, X>{elements<Y>(y), elements<const X>(x)};
      });
    });
  });
}

template <int width, class T>
struct Scale {
  Elements<T> x;
  float factor;
  __device__ void operator()(std::int64_t row, std::int64_t piece) const {
    float v[width];
    load_floats(v, x.at(row, piece * width));
#pragma unroll
    for (int i = 0; i < width; ++i) v[i] *= factor;
    store_floats(x.at(row, piece * width), v);
  }
};
struct ScaleDouble {
  Elements<double> x;
  double factor;
  __device__ void operator()(std::int64_t row, std::int64_t col) const { *x.at(row, col) *= factor; }
};

void scale(KernelContext& context, const Tensor& x, double factor) {
  with_type<float, bf16, double>(x, "x", [&]<class T>(std::type_identity<T>) {
    over_elements(context, {x}, [&]([[maybe_unused]] auto width) {
      if constexpr (std::is_same_v<T, double>) {
        return ScaleDouble{elements<double>(x), factor};
      } else {
        return Scale<width, T>{elements<T>(x), float(factor)};
      }
    });
  });
}

void zero(KernelContext& context, const Tensor& x) {
  const std::size_t element = size_of(x.dtype);
  if (x.size() == 0) return;
  if (x.contiguous()) {
    check(cudaMemsetAsync(x.data, 0, x.bytes(), stream_of(context)), "cudaMemsetAsync");
    return;
  }
  check(cudaMemset2DAsync(x.data, std::size_t(x.stride) * element, 0, std::size_t(x.cols) * element,
                          std::size_t(x.batch * x.rows), stream_of(context)),
        "cudaMemset2DAsync");
}

/// One block: every thread adds up its share in order, then the shares are added.
template <class X>
__global__ void __launch_bounds__(kThreads) sum_kernel(double* sum, Elements<const X> x, std::int64_t rows) {
  double own = 0;
  for (std::int64_t r = threadIdx.x; r < rows; r += kThreads) own += double(load_as_float(*x.at(r, 0)));
  own = block_reduce(own, shared_memory<double>());
  if (threadIdx.x == 0) *sum = own;
}

void sum(KernelContext& context, const Tensor& sum, const Tensor& x) {
  expect_matrix(sum, DType::f64, 1, 1, "sum");
  expect_matrix(x, x.dtype, x.rows, 1, "x");
  with_type<float, bf16>(x, "x", [&]<class X>(std::type_identity<X>) {
    launch(sum_kernel<X>, 1, kThreads, block_reduce_bytes<double>(kThreads), context, sum.as<double>(),
           elements<const X>(x), x.rows);
  });
}

}  // namespace

const ElementwiseKernels elementwise_kernels = {convert, add, scale, zero, sum};

}  // namespace flanmoe::cuda
