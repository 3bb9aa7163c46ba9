#include "kernels/cross_entropy.hpp"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "kernels/cpu/gemm.hpp"
#include "kernels/cpu/vector_math.hpp"
#include "kernels/cross_entropy_checks.hpp"
#include "kernels/scratch.hpp"

namespace flanmoe::cpu {
namespace {

struct Operands {
  const Tensor &nll_T, &z_T, &hit_T, &dx_TD, &dw, &x_TD, &w, &target_T;
  const CrossEntropyShape& shape;

  bool tied() const { return shape.transpose_w == Transpose::yes; }
  bool gradients() const { return !dx_TD.absent(); }
};

/// Row stride of the logits: whole 64-byte lines, and not a multiple of 4 KiB, which would map the columns that a tile
/// touches to few cache sets.
std::int64_t logit_stride(std::int64_t vocabulary) {
  const std::int64_t stride = (vocabulary + 15) / 16 * 16;
  return stride % 1024 == 0 ? stride + 16 : stride;
}

float largest_of(const float* x, std::int64_t count) {
  float largest = x[0];
#pragma omp simd reduction(max : largest)
  for (std::int64_t i = 0; i < count; ++i) largest = x[i] > largest ? x[i] : largest;
  return largest;
}

/// The loss of one token; with gradients its dlogit in place of the logits.
void token_loss(const Operands& o, float* __restrict logit, std::int64_t vocabulary, std::int64_t t) {
  const CrossEntropyShape& shape = o.shape;
  const std::int32_t target = *o.target_T.row<std::int32_t>(t);
  const float target_logit = logit[target];
  const float largest = largest_of(logit, vocabulary);
  const bool hit = target_logit == largest && std::find(logit, logit + target, largest) == logit + target;
  if (o.gradients()) {
    for (std::int64_t v = 0; v < vocabulary; ++v) logit[v] = fast_exp(logit[v] - largest);
  }
  const float sum = o.gradients()
                        ? lane_sum<float>(vocabulary, [=](std::int64_t v) { return logit[v]; })
                        : lane_sum<float>(vocabulary, [=](std::int64_t v) { return fast_exp(logit[v] - largest); });
  const float log_z = largest + std::log(sum);
  *o.nll_T.row<float>(t) = log_z - target_logit;
  *o.z_T.row<float>(t) = float(shape.z_coefficient) * log_z * log_z;
  *o.hit_T.row<float>(t) = hit ? 1.0F : 0.0F;
  if (!o.gradients()) return;
  const auto scale = float(shape.gradient_scale);
  const float factor = scale * (1.0F + 2.0F * float(shape.z_coefficient) * log_z) / sum;
  for (std::int64_t v = 0; v < vocabulary; ++v) logit[v] *= factor;
  logit[target] -= scale;
}

/// Rounds a row to bf16 in the first half of its own memory.
void narrow_in_place(float* row, std::int64_t count) {
  constexpr std::int64_t kBlock = 256;
  bf16 block[kBlock];
  char* to = reinterpret_cast<char*>(row);
  for (std::int64_t begin = 0; begin < count; begin += kBlock) {
    const std::int64_t n = std::min(kBlock, count - begin);
    for (std::int64_t i = 0; i < n; ++i) block[i] = bf16(row[begin + i]);
    std::memcpy(to + begin * std::int64_t(sizeof(bf16)), block, std::size_t(n) * sizeof(bf16));
  }
}

Product describe(const Tensor& y, const Tensor& a, bool transpose_a, const Tensor& b, bool transpose_b, double alpha,
                 bool accumulate) {
  const auto flag = [](bool t) { return t ? Transpose::yes : Transpose::no; };
  return {y,           a,
          b,           transpose_a,
          transpose_b, float(alpha),
          accumulate,  product_size(y, a, flag(transpose_a), b, flag(transpose_b))};
}

/// dx, and dw unless absent, of the rows of one chunk, from dlogit in C. The first chunk writes dw unless it is added
/// to.
void chunk_gradients(KernelContext& context, const Operands& o, const Tensor& dlogit, const Tensor& x, const Tensor& dx,
                     bool add) {
  const double scale = o.shape.logit_scale;
  multiply(context, describe(dx, dlogit, false, o.w, !o.tied(), scale, false));
  if (o.dw.absent()) return;
  Product product = o.tied() ? describe(o.dw, dlogit, true, x, false, scale, add)
                             : describe(o.dw, x, true, dlogit, false, scale, add);
  product.leaves = o.shape.leaves;  // which are of this chunk, if there are several
  multiply(context, product);
}

void chunk(KernelContext& context, const Operands& o, const Tensor& logits, std::int64_t first) {
  const std::int64_t rows = logits.rows;
  const Tensor x = o.x_TD.slice_rows(first, rows);
  const Product scores = describe(logits, x, false, o.w, o.tied(), o.shape.logit_scale, false);
  multiply_side_by_side(context, 1, [&](std::int64_t) { return scores; });
  const bool narrow = o.x_TD.dtype == DType::bf16;
#pragma omp parallel for
  for (std::int64_t i = 0; i < rows; ++i) {
    token_loss(o, logits.row<float>(i), logits.cols, first + i);
    if (narrow && o.gradients()) narrow_in_place(logits.row<float>(i), logits.cols);
  }
  if (!o.gradients()) return;
  Tensor dlogit = logits;
  if (narrow) {
    dlogit.dtype = DType::bf16;
    dlogit.stride *= 2;
  }
  chunk_gradients(context, o, dlogit, x, o.dx_TD.slice_rows(first, rows), first > 0 || o.shape.beta == 1.0F);
}

void forward_backward(KernelContext& context, const Tensor& nll_T, const Tensor& z_T, const Tensor& hit_T,
                      const Tensor& dx_TD, const Tensor& dw, const Tensor& x_TD, const Tensor& w,
                      const Tensor& target_T, const CrossEntropyShape& shape) {
  check_cross_entropy(nll_T, z_T, hit_T, dx_TD, dw, x_TD, w, target_T, shape);
  expect_targets(target_T, vocabulary_of(w, shape));
  const Operands operands{nll_T, z_T, hit_T, dx_TD, dw, x_TD, w, target_T, shape};
  const std::int64_t vocabulary = vocabulary_of(w, shape);
  const std::int64_t most = std::min(shape.chunk_rows, x_TD.rows);
  if (x_TD.rows == 0 && operands.gradients() && !dw.absent() && shape.beta == 0.0F) {
    for (std::int64_t i = 0; i < dw.rows; ++i) std::fill_n(dw.row<float>(i), dw.cols, 0.0F);
  }
  ScratchScope scratch(context);
  float* memory = scratch.take<float>(most * logit_stride(vocabulary));
  for (std::int64_t first = 0; first < x_TD.rows; first += most) {
    const std::int64_t rows = std::min(most, x_TD.rows - first);
    chunk(context, operands, {memory, DType::f32, 1, rows, vocabulary, logit_stride(vocabulary)}, first);
  }
}

std::size_t scratch_bytes(std::int64_t tokens, std::int64_t vocabulary, DType /*compute*/,
                          const CrossEntropyShape& shape) {
  const std::int64_t rows = std::min(tokens, shape.chunk_rows);
  return scratch_size<float>(rows * logit_stride(vocabulary)) + gemm_scratch_bytes();
}

}  // namespace

const CrossEntropyKernels cross_entropy_kernels{forward_backward, scratch_bytes};

}  // namespace flanmoe::cpu
