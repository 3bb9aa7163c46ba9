// Tables of a few hundred numbers: nothing here is worth a second thread.
#include "kernels/relative_bias.hpp"

#include "kernels/relative_bias_checks.hpp"

namespace flanmoe::cpu {
namespace {

void expand(KernelContext& /*context*/, const Tensor& bias_HP, const Tensor& table_UH, bool bidirectional,
            int max_distance) {
  expect_bias_table(table_UH, bias_HP, bidirectional, max_distance);
  const std::int64_t middle = (bias_HP.cols - 1) / 2;
  for (std::int64_t p = 0; p < bias_HP.cols; ++p) {
    const float* row =
        table_UH.row<float>(relative_bucket(p - middle, bidirectional, int(table_UH.rows), max_distance));
    for (std::int64_t h = 0; h < bias_HP.rows; ++h) bias_HP.row<float>(h)[p] = row[h];
  }
}

void gradient(KernelContext& /*context*/, const Tensor& dtable_UH, const Tensor& dbias_HP, bool bidirectional,
              int max_distance) {
  expect_bias_table(dtable_UH, dbias_HP, bidirectional, max_distance);
  const std::int64_t middle = (dbias_HP.cols - 1) / 2;
  for (std::int64_t p = 0; p < dbias_HP.cols; ++p) {
    float* row = dtable_UH.row<float>(relative_bucket(p - middle, bidirectional, int(dtable_UH.rows), max_distance));
    for (std::int64_t h = 0; h < dbias_HP.rows; ++h) row[h] += dbias_HP.row<float>(h)[p];
  }
}

}  // namespace

const RelativeBiasKernels relative_bias_kernels{expand, gradient};

}  // namespace flanmoe::cpu
