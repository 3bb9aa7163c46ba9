#include "parallel/tree.hpp"

#include <algorithm>
#include <array>
#include <bit>
#include <type_traits>

namespace flanmoe::detail {
namespace {

constexpr std::int64_t block = 512;  // elements added together: a level of the tree stays in the first-level cache
constexpr int deepest = 31;          // levels; ranks are counted in int

template <class T>
using Sum = std::conditional_t<std::is_same_v<T, double>, double, float>;

/// sum[i] of `ranks` rows; spare holds one block for every level below this one.
template <class T>
void add_rows(Sum<T>* sum, Sum<T>* spare, const T* rows, std::int64_t ranks, std::int64_t stride, std::int64_t count) {
  if (ranks == 1) {
    for (std::int64_t i = 0; i < count; ++i) sum[i] = Sum<T>(rows[i]);
    return;
  }
  if (ranks == 2) {
    for (std::int64_t i = 0; i < count; ++i) sum[i] = Sum<T>(rows[i]) + Sum<T>(rows[stride + i]);
    return;
  }
  const auto left = std::int64_t(std::bit_floor(std::uint64_t(ranks - 1)));
  add_rows(sum, spare, rows, left, stride, count);
  add_rows(spare, spare + block, rows + left * stride, ranks - left, stride, count);
  for (std::int64_t i = 0; i < count; ++i) sum[i] += spare[i];
}

}  // namespace

template <class T>
void tree_sum(T* out, const T* rows, std::int64_t ranks, std::int64_t stride, std::int64_t count) {
  const std::int64_t blocks = (count + block - 1) / block;
#pragma omp parallel for schedule(static)
  for (std::int64_t b = 0; b < blocks; ++b) {
    std::array<Sum<T>, block*(deepest + 1)> sums;  // only the levels in use are touched
    const std::int64_t first = b * block;
    const std::int64_t here = std::min(block, count - first);
    add_rows(sums.data(), sums.data() + block, rows + first, ranks, stride, here);
    for (std::int64_t i = 0; i < here; ++i) out[first + i] = T(sums[std::size_t(i)]);
  }
}

template void tree_sum(bf16*, const bf16*, std::int64_t, std::int64_t, std::int64_t);
template void tree_sum(float*, const float*, std::int64_t, std::int64_t, std::int64_t);
template void tree_sum(double*, const double*, std::int64_t, std::int64_t, std::int64_t);

}  // namespace flanmoe::detail
