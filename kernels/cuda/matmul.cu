// Matrix products by cuBLAS, sums in fp32. cuBLAS knows matrices by columns: a matrix of rows is its transpose there,
// so that y = a . b is asked for as y^T = b^T . a^T, and nothing is moved.
#include <cublas_v2.h>

#include <algorithm>
#include <vector>

#include "kernels/cuda/device.cuh"
#include "kernels/elementwise.hpp"
#include "kernels/matmul.hpp"
#include "kernels/matmul_checks.hpp"

namespace flanmoe::cuda {
namespace {

void check_cublas(cublasStatus_t status, const char* call) {
  if (status != CUBLAS_STATUS_SUCCESS)
    fail("{}: {} (cuBLAS status {})", call, cublasGetStatusString(status), int(status));
}

/// One handle a process, made at the first product, with the workspace that cuBLAS takes for itself then.
cublasHandle_t handle_on(cudaStream_t stream) {
  struct Handle {
    Handle() { check_cublas(cublasCreate(&handle), "cublasCreate"); }
    ~Handle() { (void)cublasDestroy(handle); }
    Handle(const Handle&) = delete;
    Handle& operator=(const Handle&) = delete;
    cublasHandle_t handle = nullptr;
    cudaStream_t stream = nullptr;
  };
  static Handle only;
  if (only.stream != stream) {
    check_cublas(cublasSetStream(only.handle, stream), "cublasSetStream");
    only.stream = stream;
  }
  return only.handle;
}

cudaDataType_t cuda_type(const Tensor& x) {
  switch (x.dtype) {
    case DType::f32: return CUDA_R_32F;
    case DType::bf16: return CUDA_R_16BF;
    default: throw LogicError(fmt::format("no product of {} on a GPU", name_of(x.dtype)));
  }
}
/// Sums are fp32; operands of fp32 are rounded to TF32 where the context allows it.
cublasComputeType_t compute_type(const KernelContext& context, cudaDataType_t operands) {
  return context.tf32 && operands == CUDA_R_32F ? CUBLAS_COMPUTE_32F_FAST_TF32 : CUBLAS_COMPUTE_32F;
}
/// What is a matrix of rows here is transposed there.
cublasOperation_t operation(Transpose transpose) { return transpose == Transpose::yes ? CUBLAS_OP_T : CUBLAS_OP_N; }
/// cuBLAS wants a leading dimension of at least 1, and of the height, of empty matrices too.
int leading(const Tensor& x) { return int(std::max<std::int64_t>({x.stride, x.cols, 1})); }

void multiply(KernelContext& context, const Tensor& y, const Tensor& a, Transpose transpose_a, const Tensor& b,
              Transpose transpose_b, float beta, ProductSize size) {
  const cudaDataType_t in = cuda_type(a), out = cuda_type(y);
  if (size.rows == 0 || size.cols == 0) return;
  if (size.inner == 0) {
    if (beta == 0) elementwise_kernels.zero(context, y);
    return;
  }
  const float one = 1;
  check_cublas(cublasGemmEx(handle_on(stream_of(context)), operation(transpose_b), operation(transpose_a),
                            int(size.cols), int(size.rows), int(size.inner), &one, b.data, in, leading(b), a.data, in,
                            leading(a), &beta, y.data, out, leading(y), compute_type(context, in), CUBLAS_GEMM_DEFAULT),
               "cublasGemmEx");
}

constexpr std::int64_t kRounded = std::int64_t{1} << 20;  // fp32 results on the way to bf16, at one time

/// bf16 results of fp32 operands, which cuBLAS does not have: part by part through fp32.
void multiply_and_round(KernelContext& context, const Tensor& y, const Tensor& a, Transpose transpose_a,
                        const Tensor& b, Transpose transpose_b, ProductSize size) {
  const std::int64_t cols = std::min(size.cols, kRounded);
  if (cols == 0) return;
  const std::int64_t rows = kRounded / cols;
  DeviceScratch scratch(context);
  float* part = scratch.take<float>(kRounded);
  for (std::int64_t i = 0; i < size.rows; i += rows) {
    for (std::int64_t j = 0; j < size.cols; j += cols) {
      const ProductSize piece{std::min(rows, size.rows - i), size.inner, std::min(cols, size.cols - j)};
      const Tensor a_part = transpose_a == Transpose::yes ? a.slice_cols(i, piece.rows) : a.slice_rows(i, piece.rows);
      const Tensor b_part = transpose_b == Transpose::yes ? b.slice_rows(j, piece.cols) : b.slice_cols(j, piece.cols);
      const Tensor y_part = make_tensor(part, piece.rows, piece.cols);
      multiply(context, y_part, a_part, transpose_a, b_part, transpose_b, 0, piece);
      elementwise_kernels.convert(context, y.slice_rows(i, piece.rows).slice_cols(j, piece.cols), y_part);
    }
  }
}

void product(KernelContext& context, const Tensor& y_MN, const Tensor& a, Transpose transpose_a, const Tensor& b,
             Transpose transpose_b, float beta) {
  const ProductSize size = product_size(y_MN, a, transpose_a, b, transpose_b);
  if (a.dtype == DType::f32 && y_MN.dtype == DType::bf16) {
    FLANMOE_EXPECT(beta == 0, "a bf16 result is not added to");
    multiply_and_round(context, y_MN, a, transpose_a, b, transpose_b, size);
  } else {
    multiply(context, y_MN, a, transpose_a, b, transpose_b, beta, size);
  }
}

/// What cublasGemmGroupedBatchedEx is told of the groups that have rows: one product a group.
struct Groups {
  std::vector<cublasOperation_t> w_op, x_op;
  std::vector<int> m, n, k, ldw, ldx, ldy, size;
  std::vector<float> one, zero;
  std::vector<const void*> w, x;
  std::vector<void*> y;
};

/// Rows in whole 16 bytes, which grouped products of tensor cores need.
bool on_16_bytes(const Tensor& t) {
  return reinterpret_cast<std::uintptr_t>(t.data) % 16 == 0 && std::size_t(t.stride) * size_of(t.dtype) % 16 == 0;
}

void multiply_groups(KernelContext& context, const Tensor& y_RN, const Tensor& x_RK, const Tensor& w_eKN,
                     Transpose transpose_w, std::span<const std::int64_t> first) {
  Groups g;
  for (std::int64_t e = 0; e < w_eKN.batch; ++e) {
    const std::int64_t begin = first[std::size_t(e)], count = first[std::size_t(e) + 1] - begin;
    if (count == 0) continue;
    const Tensor w = w_eKN.matrix(e);
    g.w_op.push_back(operation(transpose_w));
    g.x_op.push_back(CUBLAS_OP_N);
    g.m.push_back(int(y_RN.cols));
    g.n.push_back(int(count));
    g.k.push_back(int(x_RK.cols));
    g.ldw.push_back(leading(w));
    g.ldx.push_back(leading(x_RK));
    g.ldy.push_back(leading(y_RN));
    g.size.push_back(1);
    g.one.push_back(1);
    g.zero.push_back(0);
    g.w.push_back(w.data);
    g.x.push_back(x_RK.slice_rows(begin, count).data);
    g.y.push_back(y_RN.slice_rows(begin, count).data);
  }
  if (g.size.empty()) return;
  const auto* w = upload(context, std::span(g.w));
  const auto* x = upload(context, std::span(g.x));
  const auto* y = upload(context, std::span(g.y));
  const cudaDataType_t type = cuda_type(x_RK);
  check_cublas(
      cublasGemmGroupedBatchedEx(handle_on(stream_of(context)), g.w_op.data(), g.x_op.data(), g.m.data(), g.n.data(),
                                 g.k.data(), g.one.data(), w, type, g.ldw.data(), x, type, g.ldx.data(), g.zero.data(),
                                 y, type, g.ldy.data(), int(g.size.size()), g.size.data(), compute_type(context, type)),
      "cublasGemmGroupedBatchedEx");
}

void grouped(KernelContext& context, const Tensor& y_RN, const Tensor& x_RK, const Tensor& w_eKN, Transpose transpose_w,
             std::span<const std::int64_t> first) {
  expect_groups(first, w_eKN.batch, x_RK.rows);
  for (std::int64_t e = 0; e < w_eKN.batch; ++e) {
    const std::int64_t begin = first[std::size_t(e)], count = first[std::size_t(e) + 1] - begin;
    (void)product_size(y_RN.slice_rows(begin, count), x_RK.slice_rows(begin, count), Transpose::no, w_eKN.matrix(e),
                       transpose_w);
  }
  const bool fits = y_RN.dtype == x_RK.dtype && on_16_bytes(y_RN) && on_16_bytes(x_RK) && on_16_bytes(w_eKN) &&
                    std::size_t(w_eKN.rows * w_eKN.stride) * size_of(w_eKN.dtype) % 16 == 0 && x_RK.cols > 0;
  if (fits) {
    multiply_groups(context, y_RN, x_RK, w_eKN, transpose_w, first);
    return;
  }
  for (std::int64_t e = 0; e < w_eKN.batch; ++e) {
    const std::int64_t begin = first[std::size_t(e)], count = first[std::size_t(e) + 1] - begin;
    product(context, y_RN.slice_rows(begin, count), x_RK.slice_rows(begin, count), Transpose::no, w_eKN.matrix(e),
            transpose_w, 0);
  }
}

/// One product a group: their depths differ, and cuBLAS has no grouped product of bf16 into fp32.
void grouped_weight_gradient(KernelContext& context, std::span<const Tensor> dw_KN, const Tensor& x_RK,
                             const Tensor& dy_RN, std::span<const std::int64_t> first, float beta) {
  FLANMOE_EXPECT(expect_leaves(first, std::int64_t(dw_KN.size()), x_RK.rows) == 1,
                 "products: weight gradients in leaves are not computed on GPUs");
  for (std::size_t g = 0; g < dw_KN.size(); ++g) {
    const std::int64_t count = first[g + 1] - first[g];
    product(context, dw_KN[g], x_RK.slice_rows(first[g], count), Transpose::yes, dy_RN.slice_rows(first[g], count),
            Transpose::no, beta);
  }
}

std::size_t scratch_bytes() { return scratch_size<float>(kRounded); }

}  // namespace

const MatmulKernels matmul_kernels{product, grouped, grouped_weight_gradient, nullptr, scratch_bytes};

}  // namespace flanmoe::cuda
