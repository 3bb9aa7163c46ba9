#include "kernels/matmul.hpp"

#include <omp.h>

#include "kernels/cpu/gemm.hpp"
#include "kernels/matmul_checks.hpp"

namespace flanmoe::cpu {
namespace {

/// From so many groups a thread on, weight gradients are shared out group by group.
constexpr std::int64_t kGroupsOfThread = 4;

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

void product(KernelContext& context, const Tensor& y_MN, const Tensor& a, Transpose transpose_a, const Tensor& b,
             Transpose transpose_b, float beta) {
  FLANMOE_EXPECT(beta == 0.0F || beta == 1.0F, "beta is {}, not 0 or 1", beta);
  multiply(context, describe(y_MN, a, transpose_a, b, transpose_b, beta == 1.0F));
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
    for (std::int64_t g = 0; g < w_eKN.batch; ++g) multiply(context, of_group(g));
  } else {
    multiply_side_by_side(context, w_eKN.batch, of_group);
  }
}

std::int64_t packed_size(DType dtype, std::int64_t k, std::int64_t n) {
  return packs_whole(dtype, k) ? whole_b_size(dtype, k, n) : 0;
}

void pack(KernelContext& context, const Tensor& packed_eP, const Tensor& w_eKN, Transpose transpose_w) {
  const bool turned = transpose_w == Transpose::yes;
  const std::int64_t size =
      packed_size(w_eKN.dtype, turned ? w_eKN.cols : w_eKN.rows, turned ? w_eKN.rows : w_eKN.cols);
  FLANMOE_EXPECT(size > 0 && packed_eP.cols == size && packed_eP.rows == 1 && packed_eP.batch == w_eKN.batch &&
                     packed_eP.dtype == w_eKN.dtype && packed_eP.contiguous(),
                 "a packed copy of {} x {} x {} {} with {} x {} x {} {}, not 1 x {}", w_eKN.batch, w_eKN.rows,
                 w_eKN.cols, name_of(w_eKN.dtype), packed_eP.batch, packed_eP.rows, packed_eP.cols,
                 name_of(packed_eP.dtype), size);
  pack_whole_b(context, packed_eP, w_eKN, turned);
}

void grouped_packed(KernelContext& context, const Tensor& y_RN, const Tensor& x_RK, const Tensor& packed_eP,
                    std::span<const std::int64_t> first) {
  expect_groups(first, packed_eP.batch, x_RK.rows);
  const std::int64_t size = packed_size(x_RK.dtype, x_RK.cols, y_RN.cols);
  FLANMOE_EXPECT(size > 0 && packed_eP.cols == size && packed_eP.dtype == x_RK.dtype && y_RN.rows == x_RK.rows,
                 "{} x {} {} times weights packed as {} {}, for {} columns of y", x_RK.rows, x_RK.cols,
                 name_of(x_RK.dtype), packed_eP.cols, name_of(packed_eP.dtype), y_RN.cols);
  multiply_side_by_side(context, packed_eP.batch, [&](std::int64_t g) {
    const std::int64_t begin = first[std::size_t(g)], count = first[std::size_t(g) + 1] - begin;
    Product product;
    product.y = y_RN.slice_rows(begin, count);
    product.a = x_RK.slice_rows(begin, count);
    product.size = {count, x_RK.cols, y_RN.cols};
    product.packed_b = static_cast<const char*>(packed_eP.matrix(g).data);
    return product;
  });
}

void grouped_weight_gradient(KernelContext& context, std::span<const Tensor> dw_KN, const Tensor& x_RK,
                             const Tensor& dy_RN, std::span<const std::int64_t> first, float beta) {
  FLANMOE_EXPECT(beta == 0.0F || beta == 1.0F, "beta is {}, not 0 or 1", beta);
  const auto groups = std::int64_t(dw_KN.size());
  const std::int64_t leaves = expect_leaves(first, groups, x_RK.rows);
  const auto product_of = [&](std::int64_t g) {
    const auto of_group = first.subspan(std::size_t(g * leaves), std::size_t(leaves) + 1);
    const std::int64_t begin = of_group.front(), count = of_group.back() - begin;
    Product product = describe(dw_KN[std::size_t(g)], x_RK.slice_rows(begin, count), Transpose::yes,
                               dy_RN.slice_rows(begin, count), Transpose::no, beta == 1.0F);
    product.leaves = of_group;
    return product;
  };
  // With many groups no thread waits for another: packing for oneself costs less than two barriers a group.
  if (leaves == 1 && groups >= kGroupsOfThread * omp_get_max_threads()) {
    multiply_side_by_side(context, groups, product_of);
  } else {
    multiply_in_turn(context, groups, product_of);
  }
}

}  // namespace

constexpr PackedKernels packed_kernels{packed_size, pack, grouped_packed};

const MatmulKernels matmul_kernels{product, grouped, grouped_weight_gradient, &packed_kernels, gemm_scratch_bytes};

}  // namespace flanmoe::cpu
