#include "kernels/matmul.hpp"

#include "kernels/matmul_checks.hpp"
#include "kernels/reference/scalar.hpp"
#include "kernels/reference/tree.hpp"

namespace flanmoe::reference {
namespace {

/// y = op(a) . op(b) + beta y, element by element.
void multiply(const Tensor& y, const Tensor& a, Transpose transpose_a, const Tensor& b, Transpose transpose_b,
              double beta, ProductSize size) {
  with_type(a.dtype, [&]<class In>(In) {
    with_type(y.dtype, [&]<class Out>(Out) {
      const Matrix<In> a_at(a), b_at(b);
      const Matrix<Out> y_at(y);
      for (std::int64_t i = 0; i < size.rows; ++i) {
        for (std::int64_t j = 0; j < size.cols; ++j) {
          double sum = 0;
          for (std::int64_t k = 0; k < size.inner; ++k) {
            const double a_ik = transpose_a == Transpose::yes ? a_at(k, i) : a_at(i, k);
            const double b_kj = transpose_b == Transpose::yes ? b_at(j, k) : b_at(k, j);
            sum += a_ik * b_kj;
          }
          if (beta != 0) sum += beta * y_at(i, j);
          y_at.set(i, j, sum);
        }
      }
    });
  });
}

/// dw = the sum over leaves, each rounded, of x^T . dy + beta dw.
template <class C>
void leaf_products(const Tensor& dw, const Tensor& x_RK, const Tensor& dy_RN, std::span<const std::int64_t> first,
                   double beta) {
  using A = Accumulate<C>;
  const Matrix<C> x(x_RK), dy(dy_RN);
  const Matrix<A> dw_at(dw);
  for (std::int64_t i = 0; i < dw.rows; ++i) {
    for (std::int64_t j = 0; j < dw.cols; ++j) {
      const A sum = tree_sum<A>(0, std::int64_t(first.size()) - 1, [&](std::int64_t leaf) {
        double of_leaf = 0;
        for (std::int64_t r = first[std::size_t(leaf)]; r < first[std::size_t(leaf) + 1]; ++r) {
          of_leaf += x(r, i) * dy(r, j);
        }
        return A(of_leaf);
      });
      dw_at.set(i, j, beta == 0 ? double(sum) : double(sum) + beta * dw_at(i, j));
    }
  }
}

void product(KernelContext& /*context*/, const Tensor& y_MN, const Tensor& a, Transpose transpose_a, const Tensor& b,
             Transpose transpose_b, float beta) {
  multiply(y_MN, a, transpose_a, b, transpose_b, double(beta), product_size(y_MN, a, transpose_a, b, transpose_b));
}

void grouped(KernelContext& /*context*/, const Tensor& y_RN, const Tensor& x_RK, const Tensor& w_eKN,
             Transpose transpose_w, std::span<const std::int64_t> first) {
  expect_groups(first, w_eKN.batch, x_RK.rows);
  for (std::int64_t g = 0; g < w_eKN.batch; ++g) {
    const std::int64_t begin = first[std::size_t(g)];
    const std::int64_t count = first[std::size_t(g) + 1] - begin;
    const Tensor y = y_RN.slice_rows(begin, count);
    const Tensor x = x_RK.slice_rows(begin, count);
    const Tensor w = w_eKN.matrix(g);
    multiply(y, x, Transpose::no, w, transpose_w, 0, product_size(y, x, Transpose::no, w, transpose_w));
  }
}

void grouped_weight_gradient(KernelContext& /*context*/, std::span<const Tensor> dw_KN, const Tensor& x_RK,
                             const Tensor& dy_RN, std::span<const std::int64_t> first, float beta) {
  const std::int64_t leaves = expect_leaves(first, std::int64_t(dw_KN.size()), x_RK.rows);
  for (std::size_t g = 0; g < dw_KN.size(); ++g) {
    const Tensor& dw = dw_KN[g];
    const auto of_group = first.subspan(g * std::size_t(leaves), std::size_t(leaves) + 1);
    const std::int64_t count = of_group.back() - of_group.front();
    product_size(dw, x_RK.slice_rows(of_group.front(), count), Transpose::yes,
                 dy_RN.slice_rows(of_group.front(), count), Transpose::no);
    with_type(x_RK.dtype, [&]<class C>(C) { leaf_products<C>(dw, x_RK, dy_RN, of_group, double(beta)); });
  }
}

std::size_t scratch_bytes() { return 0; }

}  // namespace

const MatmulKernels matmul_kernels{product, grouped, grouped_weight_gradient, nullptr, scratch_bytes};

}  // namespace flanmoe::reference
