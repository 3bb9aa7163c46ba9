// cuBLAS of the emulated device: products in fp32, in the order of their streams.
#include <algorithm>
#include <bit>
#include <vector>

#include "cublas_v2.h"
#include "runtime.hpp"
#include "tensor/dtype.hpp"

struct cublasContext {
  cudaStream_t stream = nullptr;
};

namespace {

using flanmoe::bf16;

float load(const void* x, cudaDataType_t type, std::size_t i) {
  return type == CUDA_R_32F ? static_cast<const float*>(x)[i] : float(static_cast<const bf16*>(x)[i]);
}

/// To 10 bits of fraction, to nearest even.
float round_to_tf32(float x) {
  const auto u = std::bit_cast<std::uint32_t>(x);
  return std::bit_cast<float>((u + 0xfffU + ((u >> 13U) & 1U)) & ~0x1fffU);
}

struct Operand {
  const void* data;
  cudaDataType_t type;
  cublasOperation_t op;
  int ld;
  bool tf32;
  /// op(x) by rows and columns; matrices are stored by columns.
  float at(int row, int col) const {
    const bool turned = op == CUBLAS_OP_T;
    const float x =
        load(data, type, std::size_t(turned ? row : col) * std::size_t(ld) + std::size_t(turned ? col : row));
    return tf32 ? round_to_tf32(x) : x;
  }
};

struct Product {
  int m, n, k;
  float alpha, beta;
  Operand a, b;
  void* c;
  cudaDataType_t c_type;
  int ldc;

  bool valid() const {
    const auto covers = [](const Operand& x, int rows, int cols) {
      return x.ld >= std::max(1, x.op == CUBLAS_OP_T ? cols : rows);
    };
    return m >= 0 && n >= 0 && k >= 0 && covers(a, m, k) && covers(b, k, n) && ldc >= std::max(1, m);
  }
  /// As cuBLAS lists them for sums in fp32.
  bool supported() const {
    if (a.tf32 && (a.type != CUDA_R_32F || c_type != CUDA_R_32F)) return false;
    return a.type == b.type && (c_type == a.type || (a.type == CUDA_R_16BF && c_type == CUDA_R_32F));
  }
  void run() const {
    std::vector<float> a_km(std::size_t(k) * std::size_t(m)), sum(static_cast<std::size_t>(m));
    for (int p = 0; p < k; ++p) {
      for (int i = 0; i < m; ++i) a_km[std::size_t(p) * std::size_t(m) + std::size_t(i)] = a.at(i, p);
    }
    for (int j = 0; j < n; ++j) {
      std::fill(sum.begin(), sum.end(), 0.0F);
      for (int p = 0; p < k; ++p) {
        const float factor = b.at(p, j);
        const float* column = a_km.data() + std::size_t(p) * std::size_t(m);
        for (std::size_t i = 0; i < sum.size(); ++i) sum[i] += column[i] * factor;
      }
      for (int i = 0; i < m; ++i)
        store(std::size_t(j) * std::size_t(ldc) + std::size_t(i), alpha * sum[std::size_t(i)]);
    }
  }
  void store(std::size_t at, float value) const {
    if (beta != 0) value += beta * load(c, c_type, at);
    if (c_type == CUDA_R_32F) {
      static_cast<float*>(c)[at] = value;
    } else {
      static_cast<bf16*>(c)[at] = bf16(value);
    }
  }
};

}  // namespace

const char* cublasGetStatusString(cublasStatus_t status) {
  switch (status) {
    case CUBLAS_STATUS_SUCCESS: return "success";
    case CUBLAS_STATUS_INVALID_VALUE: return "an invalid value";
    case CUBLAS_STATUS_NOT_SUPPORTED: return "not supported";
  }
  return "unknown";
}
cublasStatus_t cublasCreate(cublasHandle_t* handle) {
  *handle = new cublasContext;
  return CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasDestroy(cublasHandle_t handle) {
  delete handle;
  return CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasSetStream(cublasHandle_t handle, cudaStream_t stream) {
  handle->stream = stream;
  return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasGemmEx(cublasHandle_t handle, cublasOperation_t op_a, cublasOperation_t op_b, int m, int n, int k,
                            const void* alpha, const void* a, cudaDataType_t a_type, int lda, const void* b,
                            cudaDataType_t b_type, int ldb, const void* beta, void* c, cudaDataType_t c_type, int ldc,
                            cublasComputeType_t compute, cublasGemmAlgo_t /*algorithm*/) {
  const bool tf32 = compute == CUBLAS_COMPUTE_32F_FAST_TF32;
  const Product product{m,
                        n,
                        k,
                        *static_cast<const float*>(alpha),
                        *static_cast<const float*>(beta),
                        {a, a_type, op_a, lda, tf32},
                        {b, b_type, op_b, ldb, tf32},
                        c,
                        c_type,
                        ldc};
  if (!product.valid()) return CUBLAS_STATUS_INVALID_VALUE;
  if (!product.supported()) return CUBLAS_STATUS_NOT_SUPPORTED;
  flanmoe::emulation::enqueue(handle->stream, [product] {
    product.run();
    return true;
  });
  return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasGemmGroupedBatchedEx(cublasHandle_t handle, const cublasOperation_t op_a[],
                                          const cublasOperation_t op_b[], const int m[], const int n[], const int k[],
                                          const void* alpha, const void* const a[], cudaDataType_t a_type,
                                          const int lda[], const void* const b[], cudaDataType_t b_type,
                                          const int ldb[], const void* beta, void* const c[], cudaDataType_t c_type,
                                          const int ldc[], int groups, const int group_size[],
                                          cublasComputeType_t compute) {
  const bool tf32 = compute == CUBLAS_COMPUTE_32F_FAST_TF32;
  std::vector<Product> products;  // without their pointers, which are read when the stream is there
  if (a_type != b_type || a_type != c_type) return CUBLAS_STATUS_NOT_SUPPORTED;
  for (int g = 0; g < groups; ++g) {
    const Product product{m[g],
                          n[g],
                          k[g],
                          static_cast<const float*>(alpha)[g],
                          static_cast<const float*>(beta)[g],
                          {nullptr, a_type, op_a[g], lda[g], tf32},
                          {nullptr, b_type, op_b[g], ldb[g], tf32},
                          nullptr,
                          c_type,
                          ldc[g]};
    if (!product.valid()) return CUBLAS_STATUS_INVALID_VALUE;
    if (!product.supported()) return CUBLAS_STATUS_NOT_SUPPORTED;
    products.insert(products.end(), std::size_t(group_size[g]), product);
  }
  flanmoe::emulation::enqueue(handle->stream, [products, a, b, c] {
    for (std::size_t i = 0; i < products.size(); ++i) {
      Product product = products[i];
      product.a.data = a[i];
      product.b.data = b[i];
      product.c = c[i];
      product.run();
    }
    return true;
  });
  return CUBLAS_STATUS_SUCCESS;
}
