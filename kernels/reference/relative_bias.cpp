#include "kernels/relative_bias.hpp"

#include "kernels/reference/scalar.hpp"
#include "kernels/relative_bias_checks.hpp"

namespace flanmoe::reference {
namespace {

void expand(KernelContext& /*context*/, const Tensor& bias_HP, const Tensor& table_UH, bool bidirectional,
            int max_distance) {
  expect_bias_table(table_UH, bias_HP, bidirectional, max_distance);
  const std::int64_t middle = (bias_HP.cols - 1) / 2;
  with_type(bias_HP.dtype, [&]<class A>(A) {
    const Matrix<A> bias(bias_HP), table(table_UH);
    for (std::int64_t p = 0; p < bias_HP.cols; ++p) {
      const int bucket = relative_bucket(p - middle, bidirectional, int(table_UH.rows), max_distance);
      for (std::int64_t h = 0; h < bias_HP.rows; ++h) bias.set(h, p, table(bucket, h));
    }
  });
}

void gradient(KernelContext& /*context*/, const Tensor& dtable_UH, const Tensor& dbias_HP, bool bidirectional,
              int max_distance) {
  expect_bias_table(dtable_UH, dbias_HP, bidirectional, max_distance);
  const std::int64_t middle = (dbias_HP.cols - 1) / 2;
  with_type(dbias_HP.dtype, [&]<class A>(A) {
    const Matrix<A> dbias(dbias_HP), dtable(dtable_UH);
    for (std::int64_t u = 0; u < dtable_UH.rows; ++u) {
      for (std::int64_t h = 0; h < dbias_HP.rows; ++h) {
        double sum = 0;
        for (std::int64_t p = 0; p < dbias_HP.cols; ++p) {
          if (relative_bucket(p - middle, bidirectional, int(dtable_UH.rows), max_distance) == u) sum += dbias(h, p);
        }
        dtable.add(u, h, sum);
      }
    }
  });
}

}  // namespace

const RelativeBiasKernels relative_bias_kernels{expand, gradient};

}  // namespace flanmoe::reference
