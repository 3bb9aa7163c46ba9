// Every output row is gathered by the threads that own it: nothing is added from two sides, so there are no atomics and
// the order of sums is that of the declaration.
#include "kernels/cuda/elements.cuh"
#include "kernels/permute.hpp"

namespace flanmoe::cuda {
namespace {

/// f(row, piece) for `pieces` pieces of every row.
template <class F>
void over_rows(KernelContext& context, std::int64_t rows, std::int64_t pieces, const F& f) {
  if (rows == 0 || pieces == 0) return;
  const std::int64_t all = rows * pieces;
  launch(over_pieces<std::int64_t, F>, striding_blocks(all, kThreads), kThreads, 0, context, f, all, pieces);
}

/// Columns an access can move in all of these matrices: 8, or 1.
int access_width(std::initializer_list<Tensor> matrices) {
  bool wide = true;
  for (const Tensor& x : matrices) {
    wide = wide &&
           (x.absent() || (reinterpret_cast<std::uintptr_t>(x.data) % 16 == 0 && x.cols % 8 == 0 && x.stride % 8 == 0));
  }
  return wide ? 8 : 1;
}
/// Calls f with the width as a constant.
template <class F>
void with_width(std::initializer_list<Tensor> matrices, F&& f) {
  if (access_width(matrices) == 8) {
    f(std::integral_constant<int, 8>{});
  } else {
    f(std::integral_constant<int, 1>{});
  }
}

/// Moves of bytes: a word is 16 bytes where rows allow it, one element otherwise.
template <class Word, bool scatters>
struct Move {
  char* y;
  const char* x;
  const std::int32_t* index;
  std::int64_t y_bytes, x_bytes, index_stride;  // from row to row
  __device__ void operator()(std::int64_t row, std::int64_t piece) const {
    const std::int64_t there = __ldg(index + row * index_stride);
    const std::int64_t to = scatters ? there : row, from = scatters ? row : there;
    reinterpret_cast<Word*>(y + to * y_bytes)[piece] = reinterpret_cast<const Word*>(x + from * x_bytes)[piece];
  }
};

template <bool scatters>
void move(KernelContext& context, const Tensor& y, const Tensor& x, const Tensor& index_R) {
  const std::int64_t size = std::int64_t(size_of(x.dtype)), row_bytes = x.cols * size;
  const auto run = [&]<class Word>(std::type_identity<Word>) {
    const Move<Word, scatters> f{static_cast<char*>(y.data),
                                 static_cast<const char*>(x.data),
                                 index_R.as<std::int32_t>(),
                                 y.stride * size,
                                 x.stride * size,
                                 index_R.stride};
    over_rows(context, index_R.rows, row_bytes / std::int64_t(sizeof(Word)), f);
  };
  const auto on_16 = [](const Tensor& t) {
    const std::size_t row = std::size_t(t.stride) * size_of(t.dtype);
    return (reinterpret_cast<std::uintptr_t>(t.data) | row | std::size_t(t.cols) * size_of(t.dtype)) % 16 == 0;
  };
  if (on_16(y) && on_16(x)) {
    run(std::type_identity<uint4>{});
  } else if (size == 8) {
    run(std::type_identity<std::uint64_t>{});
  } else if (size == 4) {
    run(std::type_identity<std::uint32_t>{});
  } else {
    run(std::type_identity<std::uint16_t>{});
  }
}

void gather(KernelContext& context, const Tensor& y_RD, const Tensor& x_TD, const Tensor& index_R) {
  expect_matrix(index_R, DType::i32, y_RD.rows, 1, "index");
  expect_matrix(y_RD, x_TD.dtype, y_RD.rows, x_TD.cols, "y");
  move<false>(context, y_RD, x_TD, index_R);
}

void scatter(KernelContext& context, const Tensor& y_TD, const Tensor& x_RD, const Tensor& index_R) {
  expect_matrix(index_R, DType::i32, x_RD.rows, 1, "index");
  expect_matrix(y_TD, x_RD.dtype, y_TD.rows, x_RD.cols, "y");
  move<true>(context, y_TD, x_RD, index_R);
}

/// y = sum over j of weight * row, or of row on top of base when there are no weights.
template <int width, class C, bool weighted>
struct Combine {
  Elements<C> y;
  Elements<const C> row, base;
  Elements<const float> weight;
  Elements<const std::int32_t> slot;
  int k;
  __device__ void operator()(std::int64_t t, std::int64_t piece) const {
    float sum[width];
    if (base.data != nullptr) {
      load_floats(sum, base.at(t, piece * width));
    } else {
#pragma unroll
      for (int i = 0; i < width; ++i) sum[i] = 0;
    }
    for (int j = 0; j < k; ++j) {
      const std::int32_t from = __ldg(slot.at(t, j));
      if (from < 0) continue;
      float x[width];
      load_floats(x, row.at(from, piece * width));
      const float w = weighted ? __ldg(weight.at(t, j)) : 1.0F;
#pragma unroll
      for (int i = 0; i < width; ++i) sum[i] = weighted ? sum[i] + w * x[i] : sum[i] + x[i];
    }
    store_floats(y.at(t, piece * width), sum);
  }
};

void combine_forward(KernelContext& context, const Tensor& y_TD, const Tensor& row_ND, const Tensor& weight_Tk,
                     const Tensor& slot_Tk) {
  expect_matrix(slot_Tk, DType::i32, y_TD.rows, slot_Tk.cols, "slot");
  expect_matrix(weight_Tk, accumulate_dtype(y_TD.dtype), y_TD.rows, slot_Tk.cols, "weight");
  expect_matrix(row_ND, y_TD.dtype, row_ND.rows, y_TD.cols, "row");
  with_type<float, bf16>(y_TD, "y", [&]<class C>(std::type_identity<C>) {
    with_width({y_TD, row_ND}, [&](auto width) {
      const Combine<width, C, true> f{elements<C>(y_TD),
                                      elements<const C>(row_ND),
                                      {},
                                      elements<const float>(weight_Tk),
                                      elements<const std::int32_t>(slot_Tk),
                                      int(slot_Tk.cols)};
      over_rows(context, y_TD.rows, y_TD.cols / width, f);
    });
  });
}

void gather_sum(KernelContext& context, const Tensor& dx_TD, const Tensor& drow_ND, const Tensor& slot_Tk,
                const Tensor& base_TD) {
  expect_matrix(slot_Tk, DType::i32, dx_TD.rows, slot_Tk.cols, "slot");
  expect_matrix(drow_ND, dx_TD.dtype, drow_ND.rows, dx_TD.cols, "drow");
  if (!base_TD.absent()) expect_like(base_TD, dx_TD, "base");
  with_type<float, bf16>(dx_TD, "dx", [&]<class C>(std::type_identity<C>) {
    with_width({dx_TD, drow_ND, base_TD}, [&](auto width) {
      const Combine<width, C, false> f{elements<C>(dx_TD),
                                       elements<const C>(drow_ND),
                                       {static_cast<const C*>(base_TD.data), base_TD.stride},
                                       {},
                                       elements<const std::int32_t>(slot_Tk),
                                       int(slot_Tk.cols)};
      over_rows(context, dx_TD.rows, dx_TD.cols / width, f);
    });
  });
}

template <class C>
struct CombineBackward {
  Elements<C> drow;
  Elements<float> dweight;
  Elements<const C> dy, row;
  Elements<const float> weight;
  Elements<const std::int32_t> slot;
  std::int64_t tokens;
  int k, pieces;
};

/// One warp a token: its row of dy stays in the first cache while the copies pass.
template <int width, class C>
__global__ void __launch_bounds__(kThreads) combine_backward_kernel(CombineBackward<C> o) {
  const std::int64_t warps = std::int64_t(gridDim.x) * (kThreads / kWarp);
  const int lane = int(threadIdx.x) % kWarp;
  for (std::int64_t t = std::int64_t(blockIdx.x) * (kThreads / kWarp) + int(threadIdx.x) / kWarp; t < o.tokens;
       t += warps) {
    for (int j = 0; j < o.k; ++j) {
      const std::int32_t there = __ldg(o.slot.at(t, j));
      float dot = 0;
      if (there >= 0) {
        const float w = __ldg(o.weight.at(t, j));
        for (int piece = lane; piece < o.pieces; piece += kWarp) {
          float dy[width], x[width];
          load_floats(dy, o.dy.at(t, std::int64_t(piece) * width));
          load_floats(x, o.row.at(there, std::int64_t(piece) * width));
#pragma unroll
          for (int i = 0; i < width; ++i) {
            dot += dy[i] * x[i];
            x[i] = w * dy[i];
          }
          store_floats(o.drow.at(there, std::int64_t(piece) * width), x);
        }
        dot = warp_reduce(dot);
      }
      if (lane == 0) *o.dweight.at(t, j) = dot;
    }
  }
}

void combine_backward(KernelContext& context, const Tensor& drow_ND, const Tensor& dweight_Tk, const Tensor& dy_TD,
                      const Tensor& row_ND, const Tensor& weight_Tk, const Tensor& slot_Tk) {
  expect_matrix(slot_Tk, DType::i32, dy_TD.rows, slot_Tk.cols, "slot");
  expect_matrix(weight_Tk, accumulate_dtype(dy_TD.dtype), dy_TD.rows, slot_Tk.cols, "weight");
  expect_like(dweight_Tk, weight_Tk, "dweight");
  expect_matrix(row_ND, dy_TD.dtype, row_ND.rows, dy_TD.cols, "row");
  expect_like(drow_ND, row_ND, "drow");
  with_type<float, bf16>(dy_TD, "dy", [&]<class C>(std::type_identity<C>) {
    with_width({drow_ND, dy_TD, row_ND}, [&](auto width) {
      const CombineBackward<C> o{elements<C>(drow_ND),
                                 elements<float>(dweight_Tk),
                                 elements<const C>(dy_TD),
                                 elements<const C>(row_ND),
                                 elements<const float>(weight_Tk),
                                 elements<const std::int32_t>(slot_Tk),
                                 dy_TD.rows,
                                 int(slot_Tk.cols),
                                 int(dy_TD.cols / width)};
      launch(combine_backward_kernel<width, C>, striding_blocks(dy_TD.rows, kThreads / kWarp), kThreads, 0, context, o);
    });
  });
}

}  // namespace

const PermuteKernels permute_kernels = {gather, scatter, combine_forward, combine_backward, gather_sum};

}  // namespace flanmoe::cuda
