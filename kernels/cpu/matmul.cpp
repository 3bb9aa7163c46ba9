#include "kernels/matmul.hpp"

#include <algorithm>

#include "kernels/cpu/gemm.hpp"
#include "kernels/cpu/tile_kernel.hpp"
#include "kernels/matmul_checks.hpp"

namespace flanmoe::cpu {
namespace {

/// Most that an fp32 temporary takes.
constexpr std::int64_t kTemporaryBytes = std::int64_t{8} << 20;

Product describe(const Tensor& y, const Tensor& a, Transpose transpose_a, const Tensor& b, Transpose transpose_b,
                 bool accumulate) {
  return {y,
          a,
          b,
          transpose_a == Transpose::yes,
          transpose_b == Transpose::yes,
          1.0F,
          accumulate,
          product_size(y, a, transpose_a, b, transpose_b)};
}

/// A bf16 result of a depth that needs several slices is summed in an fp32 temporary, some rows at a time.
void multiply_deep(KernelContext& context, const Product& p) {
  const std::size_t mark = context.scratch->mark();
  const std::int64_t most = kTemporaryBytes / (4 * std::max<std::int64_t>(1, p.size.cols));
  const std::int64_t chunk = std::min(std::max<std::int64_t>(1, most), p.size.rows);
  const Tensor temporary = context.scratch->allocate(DType::f32, chunk, p.size.cols);
  for (std::int64_t m = 0; m < p.size.rows; m += chunk) {
    const std::int64_t rows = std::min(chunk, p.size.rows - m);
    Product part = p;
    part.y = temporary.slice_rows(0, rows);
    part.a = p.transpose_a ? p.a.slice_cols(m, rows) : p.a.slice_rows(m, rows);
    part.size.rows = rows;
    multiply_in_turn(context, 1, [&](std::int64_t) { return part; });
#pragma omp parallel for
    for (std::int64_t i = 0; i < rows; ++i) {
      const float* from = temporary.row<float>(i);
      bf16* to = p.y.row<bf16>(m + i);
      for (std::int64_t j = 0; j < p.size.cols; ++j) to[j] = bf16(from[j]);
    }
  }
  context.scratch->release(mark);
}

bool needs_temporary(const Product& p) { return p.y.dtype == DType::bf16 && p.size.inner > max_depth(p.a.dtype); }

void product(KernelContext& context, const Tensor& y_MN, const Tensor& a, Transpose transpose_a, const Tensor& b,
             Transpose transpose_b, float beta) {
  FLANMOE_EXPECT(beta == 0.0F || beta == 1.0F, "beta is {}, not 0 or 1", beta);
  const Product p = describe(y_MN, a, transpose_a, b, transpose_b, beta == 1.0F);
  if (needs_temporary(p)) {
    multiply_deep(context, p);
  } else {
    multiply_in_turn(context, 1, [&](std::int64_t) { return p; });
  }
}

void grouped(KernelContext& context, const Tensor& y_RN, const Tensor& x_RK, const Tensor& w_eKN, Transpose transpose_w,
             std::span<const std::int64_t> first) {
  expect_groups(first, w_eKN.batch, x_RK.rows);
  const auto of_group = [&](std::int64_t g) {
    const std::int64_t begin = first[std::size_t(g)];
    const std::int64_t count = first[std::size_t(g) + 1] - begin;
    return describe(y_RN.slice_rows(begin, count), x_RK.slice_rows(begin, count), Transpose::no, w_eKN.matrix(g),
                    transpose_w, false);
  };
  if (w_eKN.batch > 0 && needs_temporary(of_group(0))) {
    for (std::int64_t g = 0; g < w_eKN.batch; ++g) multiply_deep(context, of_group(g));
  } else {
    multiply_side_by_side(context, w_eKN.batch, of_group);
  }
}

void grouped_weight_gradient(KernelContext& context, std::span<const Tensor> dw_KN, const Tensor& x_RK,
                             const Tensor& dy_RN, std::span<const std::int64_t> first) {
  const auto groups = std::int64_t(dw_KN.size());
  expect_groups(first, groups, x_RK.rows);
  multiply_in_turn(context, groups, [&](std::int64_t g) {
    const std::int64_t begin = first[std::size_t(g)];
    const std::int64_t count = first[std::size_t(g) + 1] - begin;
    return describe(dw_KN[std::size_t(g)], x_RK.slice_rows(begin, count), Transpose::yes,
                    dy_RN.slice_rows(begin, count), Transpose::no, true);
  });
}

std::size_t scratch_bytes() { return gemm_scratch_bytes() + std::size_t(kTemporaryBytes) + 64; }

}  // namespace

const MatmulKernels matmul_kernels{product, grouped, grouped_weight_gradient, scratch_bytes};

}  // namespace flanmoe::cpu
