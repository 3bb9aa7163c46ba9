// What Adafactor does with a row, shared by updates of whole matrices and of blocks.
#pragma once

#include <cstdint>

#include "kernels/cpu/vector_math.hpp"

namespace flanmoe::cpu {

inline constexpr std::int64_t kTile = 1024;  // columns whose sums stay in the first-level cache

inline double square_of(float x) { return double(x) * double(x); }

/// Sum over one row's tile of s = g^2 + epsilon, which is also added to the sums of the columns.
inline double add_squares(double* col_sum, const float* g, float scale, double epsilon, std::int64_t n) {
#pragma omp simd
  for (std::int64_t j = 0; j < n; ++j) {
    const float gradient = g[j] * scale;
    col_sum[j] += double(gradient) * double(gradient) + epsilon;
  }
  return lane_sum<double>(n, [=](std::int64_t j) { return square_of(g[j] * scale) + epsilon; });
}

/// p -= factor * u + decay * p with u the unclipped update.
inline void apply_row(float* p, const float* g, const float* col_part, float scale, float row_part, float factor,
                      float decay, std::int64_t n) {
#pragma omp simd
  for (std::int64_t j = 0; j < n; ++j) {
    const float u = g[j] * scale * row_part * col_part[j];
    p[j] -= factor * u + decay * p[j];
  }
}

}  // namespace flanmoe::cpu
