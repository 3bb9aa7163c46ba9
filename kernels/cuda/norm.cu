#include "kernels/cuda/elements.cuh"
#include "kernels/norm.hpp"
#include "kernels/scratch.hpp"

namespace flanmoe::cuda {
namespace {

// A block walks a row two or three times; all times but the first it is in the nearest cache. Thread i owns the pieces
// i, i + kThreads, ... of every row.

template <int width, bool centered>
__device__ float center_of(const float* x, std::int64_t D, float* room) {
  if constexpr (!centered) return 0.0F;
  float sum = 0.0F;
  for (std::int64_t c = std::int64_t(threadIdx.x) * width; c < D; c += kThreads * width) {
    float v[width];
    load_floats(v, x + c);
#pragma unroll
    for (int i = 0; i < width; ++i) sum += v[i];
  }
  return block_reduce(sum, room) / float(D);
}

template <int width, bool centered, class C>
__global__ void __launch_bounds__(kThreads)
    norm_forward(Elements<C> y, float* rstd, std::int64_t rstd_stride, Elements<const float> x, const float* scale,
                 std::int64_t D, float epsilon) {
  float* room = shared_memory<float>();
  const std::int64_t t = blockIdx.x;
  const float* row = x.at(t, 0);
  const float center = center_of<width, centered>(row, D, room);
  float sum = 0.0F;
  for (std::int64_t c = std::int64_t(threadIdx.x) * width; c < D; c += kThreads * width) {
    float v[width];
    load_floats(v, row + c);
#pragma unroll
    for (int i = 0; i < width; ++i) sum += (v[i] - center) * (v[i] - center);
  }
  const float r = 1.0F / sqrtf(block_reduce(sum, room) / float(D) + epsilon);
  if (rstd != nullptr && threadIdx.x == 0) rstd[t * rstd_stride] = r;
  for (std::int64_t c = std::int64_t(threadIdx.x) * width; c < D; c += kThreads * width) {
    float v[width], s[width];
    load_floats(v, row + c);
    load_floats(s, scale + c);
#pragma unroll
    for (int i = 0; i < width; ++i) v[i] = (v[i] - center) * r * s[i];
    store_floats(y.at(t, c), v);
  }
}

/// Rows are read and written in pieces of 8 where all begin on 16 bytes.
bool wide(std::initializer_list<Tensor> operands) {
  for (const Tensor& x : operands) {
    const bool aligned = reinterpret_cast<std::uintptr_t>(x.data) % 16 == 0 && (x.rows == 1 || x.stride % 8 == 0);
    if (!aligned || x.cols % 8 != 0) return false;
  }
  return true;
}

template <class F>
void with_width(bool is_wide, F&& f) {
  if (is_wide) {
    f(std::integral_constant<int, 8>{});
  } else {
    f(std::integral_constant<int, 1>{});
  }
}

template <bool centered>
void forward(KernelContext& context, const Tensor& y_TD, const Tensor& rstd_T, const Tensor& x_TD,
             const Tensor& scale_D, float epsilon) {
  expect_matrix(y_TD, y_TD.dtype, x_TD.rows, x_TD.cols, "y");
  expect_matrix(x_TD, DType::f32, x_TD.rows, x_TD.cols, "x");
  expect_matrix(scale_D, DType::f32, 1, x_TD.cols, "scale");
  if (!rstd_T.absent()) expect_matrix(rstd_T, DType::f32, x_TD.rows, 1, "rstd");
  with_type<float, bf16>(y_TD, "y", [&]<class C>(std::type_identity<C>) {
    with_width(wide({y_TD, x_TD, scale_D}), [&](auto width) {
      launch(norm_forward<width, centered, C>, unsigned(x_TD.rows), kThreads, block_reduce_bytes<float>(kThreads),
             context, elements<C>(y_TD), rstd_T.as<float>(), rstd_T.stride, elements<const float>(x_TD),
             scale_D.as<float>(), x_TD.cols, epsilon);
    });
  });
}

// The tokens are cut into at most so many slabs, a block each; dscale is summed in token order inside a slab, then over
// slabs: an order that no GPU changes.
constexpr std::int64_t kSlabs = 256;

struct NormBackward {
  Elements<float> dx;
  Elements<const float> x;
  const float *rstd, *scale;
  std::int64_t rstd_stride, T, D, slab_rows;
  float* partial;  // slabs x D; null without a gradient of the scale
};

template <int width, bool centered, class C>
__global__ void __launch_bounds__(kThreads) norm_backward(NormBackward p, Elements<const C> dy) {
  float* room = shared_memory<float>();
  float* dscale = shared_memory<float>(block_reduce_bytes<float>(kThreads));  // D; every thread its own pieces
  const std::int64_t D = p.D, begin = std::int64_t(blockIdx.x) * p.slab_rows;
  const std::int64_t end = begin + p.slab_rows < p.T ? begin + p.slab_rows : p.T;
  const std::int64_t first = std::int64_t(threadIdx.x) * width;
  for (std::int64_t c = first; c < D; c += kThreads * width) {
#pragma unroll
    for (int i = 0; i < width; ++i) dscale[c + i] = 0.0F;
  }
  for (std::int64_t t = begin; t < end; ++t) {
    const float* x = p.x.at(t, 0);
    const float rstd = p.rstd[t * p.rstd_stride];
    const float center = center_of<width, centered>(x, D, room);
    float dot = 0.0F, sum_g = 0.0F;
    for (std::int64_t c = first; c < D; c += kThreads * width) {
      float v[width], g[width], s[width];
      load_floats(v, x + c);
      load_floats(g, dy.at(t, c));
      load_floats(s, p.scale + c);
#pragma unroll
      for (int i = 0; i < width; ++i) {
        dot += g[i] * s[i] * (v[i] - center);
        sum_g += g[i] * s[i];
      }
    }
    const float mean = block_reduce(dot, room) * rstd / float(D);
    const float mean_g = centered ? block_reduce(sum_g, room) / float(D) : 0.0F;
    for (std::int64_t c = first; c < D; c += kThreads * width) {
      float v[width], g[width], s[width], d[width];
      load_floats(v, x + c);
      load_floats(g, dy.at(t, c));
      load_floats(s, p.scale + c);
      load_floats(d, p.dx.at(t, c));
#pragma unroll
      for (int i = 0; i < width; ++i) {
        const float xhat = (v[i] - center) * rstd;
        d[i] += rstd * (g[i] * s[i] - mean_g - xhat * mean);
        dscale[c + i] += g[i] * xhat;
      }
      store_floats(p.dx.at(t, c), d);
    }
  }
  if (p.partial == nullptr) return;
  for (std::int64_t c = first; c < D; c += kThreads * width) {
#pragma unroll
    for (int i = 0; i < width; ++i) p.partial[std::int64_t(blockIdx.x) * D + c + i] = dscale[c + i];
  }
}

__global__ void __launch_bounds__(kThreads)
    add_slabs(float* dscale, const float* partial, std::int64_t slabs, std::int64_t D) {
  const std::int64_t c = std::int64_t(blockIdx.x) * kThreads + threadIdx.x;
  if (c >= D) return;
  float sum = 0.0F;
  for (std::int64_t s = 0; s < slabs; ++s) sum += partial[s * D + c];
  dscale[c] += sum;
}

template <bool centered>
void backward(KernelContext& context, const Tensor& dx_TD, const Tensor& dscale_D, const Tensor& dy_TD,
              const Tensor& x_TD, const Tensor& rstd_T, const Tensor& scale_D) {
  expect_matrix(x_TD, DType::f32, dy_TD.rows, dy_TD.cols, "x");
  expect_like(dx_TD, x_TD, "dx");
  expect_matrix(rstd_T, DType::f32, dy_TD.rows, 1, "rstd");
  expect_matrix(scale_D, DType::f32, 1, dy_TD.cols, "scale");
  if (!dscale_D.absent()) expect_like(dscale_D, scale_D, "dscale");
  const std::int64_t T = x_TD.rows, D = x_TD.cols;
  if (T == 0) return;
  const std::int64_t slab_rows = (T + kSlabs - 1) / kSlabs, slabs = (T + slab_rows - 1) / slab_rows;
  DeviceScratch scratch(context);
  float* partial = dscale_D.absent() ? nullptr : scratch.take<float>(slabs * D);
  const NormBackward p{elements<float>(dx_TD),
                       elements<const float>(x_TD),
                       rstd_T.as<float>(),
                       scale_D.as<float>(),
                       rstd_T.stride,
                       T,
                       D,
                       slab_rows,
                       partial};
  const std::size_t shared = block_reduce_bytes<float>(kThreads) + std::size_t(D) * sizeof(float);
  with_type<float, bf16>(dy_TD, "dy", [&]<class C>(std::type_identity<C>) {
    with_width(wide({dx_TD, dy_TD, x_TD, scale_D}), [&](auto width) {
      launch(norm_backward<width, centered, C>, unsigned(slabs), kThreads, shared, context, p,
             elements<const C>(dy_TD));
    });
  });
  if (dscale_D.absent()) return;
  launch(add_slabs, blocks_for(D, kThreads), kThreads, 0, context, dscale_D.as<float>(), partial, slabs, D);
}

std::size_t scratch_bytes(std::int64_t tokens, std::int64_t width) {
  return scratch_size<float>(std::min(kSlabs, tokens) * width);
}

}  // namespace

const NormKernels norm_kernels = {forward<false>, backward<false>, scratch_bytes};
const NormKernels layer_norm_kernels = {forward<true>, backward<true>, scratch_bytes};

}  // namespace flanmoe::cuda
