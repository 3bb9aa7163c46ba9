#include "kernels/column_scale.hpp"
#include "kernels/cuda/elements.cuh"

namespace flanmoe::cuda {
namespace {

/// The group of a row: the last one that begins at or before it and is not empty.
__device__ inline std::int64_t group_of(const std::int64_t* first, std::int64_t groups, std::int64_t row) {
  std::int64_t low = 0, high = groups;  // first[low] <= row < first[high]
  while (high - low > 1) {
    const std::int64_t middle = (low + high) / 2;
    if (first[middle] <= row) {
      low = middle;
    } else {
      high = middle;
    }
  }
  return low;
}

template <int width, class C>
struct ScaleColumns {
  Elements<C> y;
  Elements<const C> x;
  Elements<const float> scale;
  const std::int64_t* first;
  std::int64_t groups;
  __device__ void operator()(std::int64_t row, std::int64_t piece) const {
    float v[width], s[width];
    load_floats(v, x.at(row, piece * width));
    load_floats(s, scale.at(group_of(first, groups, row), piece * width));
#pragma unroll
    for (int i = 0; i < width; ++i) v[i] *= s[i];
    store_floats(y.at(row, piece * width), v);
  }
};

void forward(KernelContext& context, const Tensor& y_RF, const Tensor& x_RF, const Tensor& scale_eF,
             std::span<const std::int64_t> first) {
  expect_column_scale(y_RF, x_RF, scale_eF, first);
  const std::int64_t* begins = upload(context, first);
  with_type<float, bf16>(x_RF, "x", [&]<class C>(std::type_identity<C>) {
    over_rows(context, {y_RF, x_RF, scale_eF}, [&](auto width) {
      return ScaleColumns<width, C>{elements<C>(y_RF), elements<const C>(x_RF), elements<const float>(scale_eF), begins,
                                    scale_eF.batch};
    });
  });
}

constexpr int kRowsOfBlock = 8;  // rows that a block works on at one time, a warp each

/// Block (columns / 32, group): warp w walks the rows w, w + kRowsOfBlock, ... of the group, lane l column l; then the
/// warps' sums are added in their order.
template <class C>
__global__ void __launch_bounds__(kRowsOfBlock* kWarp)
    scale_columns_backward(Elements<C> dx, float* const* dscale, Elements<const C> dy, Elements<const C> x,
                           Elements<const float> scale, const std::int64_t* first, std::int64_t F) {
  float* sums = shared_memory<float>();
  const int lane = int(threadIdx.x) % kWarp, warp = int(threadIdx.x) / kWarp;
  const std::int64_t f = std::int64_t(blockIdx.x) * kWarp + lane, group = blockIdx.y;
  const float s = f < F ? *scale.at(group, f) : 0.0F;
  float sum = 0.0F;
  for (std::int64_t r = first[group] + warp; r < first[group + 1]; r += kRowsOfBlock) {
    if (f >= F) continue;
    const float g = load_as_float(*dy.at(r, f));
    sum += g * load_as_float(*x.at(r, f));
    *dx.at(r, f) = round_to<C>(g * s);
  }
  sums[threadIdx.x] = sum;
  __syncthreads();
  if (warp != 0 || f >= F) return;
  for (int w = 1; w < kRowsOfBlock; ++w) sum += sums[w * kWarp + lane];
  dscale[group][f] += sum;
}

void backward(KernelContext& context, const Tensor& dx_RF, std::span<const Tensor> dscale_F, const Tensor& dy_RF,
              const Tensor& x_RF, const Tensor& scale_eF, std::span<const std::int64_t> first) {
  expect_column_scale(dx_RF, x_RF, scale_eF, first);
  expect_like(dy_RF, x_RF, "dy");
  const std::int64_t groups = scale_eF.batch;
  FLANMOE_EXPECT(std::int64_t(dscale_F.size()) == groups && groups <= 65535, "{} gradients for {} groups",
                 dscale_F.size(), groups);
  for (const Tensor& dscale : dscale_F) expect_matrix(dscale, DType::f32, 1, x_RF.cols, "dscale");
  const std::int64_t* begins = upload(context, first);
  float* const* sums = upload_pointers<float>(context, dscale_F);
  with_type<float, bf16>(x_RF, "x", [&]<class C>(std::type_identity<C>) {
    launch(scale_columns_backward<C>, dim3(blocks_for(x_RF.cols, kWarp), unsigned(groups)), kRowsOfBlock * kWarp,
           sizeof(float) * kRowsOfBlock * kWarp, context, elements<C>(dx_RF), sums, elements<const C>(dy_RF),
           elements<const C>(x_RF), elements<const float>(scale_eF), begins, x_RF.cols);
  });
}

}  // namespace

const ColumnScaleKernels column_scale_kernels = {forward, backward};

}  // namespace flanmoe::cuda
