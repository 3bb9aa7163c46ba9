#include "kernels/dropout.hpp"

#include <bit>
#include <cmath>

#include "kernels/cpu/partition.hpp"
#include "kernels/cpu/philox_words.hpp"
#include "kernels/cpu/vector_math.hpp"
#include "kernels/dispatch.hpp"
#include "kernels/elementwise.hpp"

namespace flanmoe::cpu {
namespace {

constexpr std::int64_t kTile = 1024;  // columns whose mask is held at one time

/// The mask of columns [first, first+count) of one token: all ones where kept, else zero.
struct MaskTile {
  std::array<std::uint32_t, kTile + 4 * kPhiloxLanes + 4> words;
  std::array<std::uint32_t, kTile> keep;

  void fill(const DropoutMask& mask, std::array<std::uint32_t, 2> key, std::int64_t token, std::int64_t first,
            std::int64_t count) {
    const std::int64_t per = mask.columns_per_mask;
    const std::int64_t first_block = first / per / 4;
    const std::int64_t last_block = (first + count - 1) / per / 4;
    philox_words(words.data(), key, std::uint64_t(mask.row_T[std::size_t(token)]),
                 std::uint32_t(mask.position_T[std::size_t(token)]), std::uint32_t(first_block),
                 last_block - first_block + 1);
    // word/2^32 >= rate as integers: exact, since rate * 2^32 is exact in double.
    const auto threshold = std::uint32_t(std::ceil(double(mask.rate) * 0x1p32));
    if (per == 1) {
      const std::uint32_t* word = words.data() + (first - 4 * first_block);
#pragma omp simd
      for (std::int64_t i = 0; i < count; ++i) keep[std::size_t(i)] = word[i] >= threshold ? 0xffffffffU : 0U;
      return;
    }
    for (std::int64_t i = 0; i < count;) {
      const std::int64_t word = (first + i) / per;
      const std::int64_t end = std::min(count, (word + 1) * per - first);
      const std::uint32_t value = words[std::size_t(word - 4 * first_block)] >= threshold ? 0xffffffffU : 0U;
      std::fill(keep.begin() + i, keep.begin() + end, value);
      i = end;
    }
  }
};

/// Calls f(t, first, count, keep) for all tokens and columns; tokens in a row that share their mask compute it once.
template <class F>
void for_masked_tiles(std::int64_t T, std::int64_t D, const DropoutMask& mask, F&& f) {
  const auto key = mask.key.philox_key();
  for_blocks(T, 64, D, [&](std::int64_t /*b*/, std::int64_t begin, std::int64_t end) {
    MaskTile tile;
    for (std::int64_t first = 0; first < D; first += kTile) {
      const std::int64_t count = std::min(kTile, D - first);
      for (std::int64_t t = begin; t < end; ++t) {
        const auto i = std::size_t(t);
        const bool same =
            t > begin && mask.row_T[i] == mask.row_T[i - 1] && mask.position_T[i] == mask.position_T[i - 1];
        if (!same) tile.fill(mask, key, t, first, count);
        f(t, first, count, tile.keep.data());
      }
    }
  });
}

inline float masked(float x, std::uint32_t keep) {
  return std::bit_cast<float>(std::bit_cast<std::uint32_t>(x) & keep);
}

template <class C>
void apply_tile(C* y, const C* x, float factor, const std::uint32_t* keep, std::int64_t n) {
#pragma omp simd
  for (std::int64_t i = 0; i < n; ++i) store(y[i], masked(widen(x[i]) * factor, keep[i]));
}

template <class C>
void add_tile(float* y, const C* x, float factor, const std::uint32_t* keep, std::int64_t n) {
#pragma omp simd
  for (std::int64_t i = 0; i < n; ++i) y[i] += masked(widen(x[i]) * factor, keep[i]);
}

void expect_mask(const DropoutMask& mask, std::int64_t tokens) {
  FLANMOE_EXPECT(mask.rate > 0 && mask.rate < 1, "dropout rate {}", mask.rate);
  FLANMOE_EXPECT(mask.columns_per_mask > 0, "{} columns per mask", mask.columns_per_mask);
  FLANMOE_EXPECT(std::int64_t(mask.row_T.size()) == tokens && std::int64_t(mask.position_T.size()) == tokens,
                 "{} rows and {} positions for {} tokens", mask.row_T.size(), mask.position_T.size(), tokens);
}

void apply(KernelContext& context, const Tensor& y_TD, const Tensor& x_TD, const DropoutMask& mask) {
  expect_like(y_TD, x_TD, "y");
  if (mask.rate == 0) {
    if (y_TD.data != x_TD.data) elementwise_kernels.convert(context, y_TD, x_TD);
    return;
  }
  expect_mask(mask, x_TD.rows);
  const float factor = 1.0F / (1.0F - mask.rate);
  with_type<float, bf16>(x_TD, "x", [&]<class C>(std::type_identity<C>) {
    auto* y = y_TD.as<C>();
    const auto* x = x_TD.as<C>();
    for_masked_tiles(x_TD.rows, x_TD.cols, mask,
                     [&](std::int64_t t, std::int64_t first, std::int64_t n, const std::uint32_t* keep) {
                       apply_tile(y + t * y_TD.stride + first, x + t * x_TD.stride + first, factor, keep, n);
                     });
  });
}

void add(KernelContext& context, const Tensor& residual_TD, const Tensor& x_TD, const DropoutMask& mask) {
  expect_matrix(residual_TD, DType::f32, x_TD.rows, x_TD.cols, "residual");
  if (mask.rate == 0) return elementwise_kernels.add(context, residual_TD, x_TD);
  expect_mask(mask, x_TD.rows);
  const float factor = 1.0F / (1.0F - mask.rate);
  auto* y = residual_TD.as<float>();
  with_type<float, bf16>(x_TD, "x", [&]<class C>(std::type_identity<C>) {
    const auto* x = x_TD.as<C>();
    for_masked_tiles(x_TD.rows, x_TD.cols, mask,
                     [&](std::int64_t t, std::int64_t first, std::int64_t n, const std::uint32_t* keep) {
                       add_tile(y + t * residual_TD.stride + first, x + t * x_TD.stride + first, factor, keep, n);
                     });
  });
}

}  // namespace

const DropoutKernels dropout_kernels = {apply, add};

}  // namespace flanmoe::cpu
