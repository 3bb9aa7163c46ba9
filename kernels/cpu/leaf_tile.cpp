#include "kernels/cpu/leaf_tile.hpp"

#ifdef __AVX512F__
#include <immintrin.h>
#endif

#include <array>
#include <cstring>
#include <vector>

#include "base/error.hpp"

namespace flanmoe::cpu {

#ifdef __AVX512F__
namespace {

constexpr int kRows = 6;     // with four lines of c a row, 24 of 32 registers; four are of b, the others of a
constexpr int kFloats = 16;  // of a line
constexpr int kLines = int(kTileColStep) / kFloats;
constexpr int kWaiting = 3;  // sums of leaves, at most, of kMostLeavesOfTile

/// sum + the products of one word of a row with one word of each of 16 columns.
template <DType dtype>
[[gnu::always_inline]] inline __m512 multiply_word(__m512 sum, __m512 a, __m512 b) {
#ifdef __AVX512BF16__
  if constexpr (dtype == DType::bf16) return _mm512_dpbf16_ps(sum, __m512bh(a), __m512bh(b));
#endif
  return _mm512_fmadd_ps(a, b, sum);
}

template <int rows>
struct Sums {
  __m512 line[rows][kLines];
};

template <DType dtype, int rows>
[[gnu::always_inline]] inline Sums<rows> leaf_sums(const PackedLeaf& leaf, const char* a, const char* b) {
  Sums<rows> sums;
  for (int r = 0; r < rows; ++r) {
    for (int l = 0; l < kLines; ++l) sums.line[r][l] = _mm512_setzero_ps();
  }
#pragma GCC unroll 4  // without it gcc 12 keeps a part of b in memory: 108 instead of 115 GFLOP/s a thread
  for (std::int64_t word = 0; word < leaf.words; ++word, a += 4, b += kLines * sizeof(__m512)) {
    __m512 of_b[kLines];
    for (int l = 0; l < kLines; ++l) of_b[l] = _mm512_load_ps(b + l * std::int64_t(sizeof(__m512)));
    for (int r = 0; r < rows; ++r) {
      float bits;
      std::memcpy(&bits, a + r * leaf.row_bytes, sizeof bits);
      const __m512 of_a = _mm512_set1_ps(bits);
      for (int l = 0; l < kLines; ++l) sums.line[r][l] = multiply_word<dtype>(sums.line[r][l], of_a, of_b[l]);
    }
  }
  return sums;
}

template <DType dtype, int rows>
void multiply_rows(float* c, std::int64_t ldc, std::int64_t first_row, std::int64_t block,
                   std::span<const PackedLeaf> leaves, float alpha) {
  // What is written is not in the caches, and is asked for while there is something else to do.
  for (int r = 0; r < rows; ++r) {
    for (int l = 0; l < kLines; ++l) __builtin_prefetch(c + r * ldc + l * kFloats, 1);
  }
  Sums<rows> waiting[kWaiting];
  int level = 0;
  for (std::size_t leaf = 0; leaf < leaves.size(); ++leaf) {
    const PackedLeaf& of = leaves[leaf];
    Sums<rows> sums = leaf_sums<dtype, rows>(of, of.a + first_row * of.row_bytes, of.b + block * of.block_bytes);
    if (alpha != 1.0F) {
      for (auto& row : sums.line) {
        for (__m512& line : row) line = _mm512_mul_ps(line, _mm512_set1_ps(alpha));
      }
    }
    for (std::size_t n = leaf + 1; n % 2 == 0; n /= 2) {
      --level;
      for (int r = 0; r < rows; ++r) {
        for (int l = 0; l < kLines; ++l) {
          sums.line[r][l] = _mm512_add_ps(waiting[level].line[r][l], sums.line[r][l]);
        }
      }
    }
    if (leaf + 1 < leaves.size()) {
      waiting[level++] = sums;
      continue;
    }
    for (int r = 0; r < rows; ++r) {
      for (int l = 0; l < kLines; ++l) _mm512_storeu_ps(c + r * ldc + l * kFloats, sums.line[r][l]);
    }
  }
}

template <DType dtype>
void multiply_tile(float* c, std::int64_t ldc, std::int64_t rows, std::int64_t blocks,
                   std::span<const PackedLeaf> leaves, float alpha) {
  constexpr std::array kByRows = {multiply_rows<dtype, 1>, multiply_rows<dtype, 2>, multiply_rows<dtype, 3>,
                                  multiply_rows<dtype, 4>, multiply_rows<dtype, 5>, multiply_rows<dtype, kRows>};
  for (std::int64_t r = 0; r < rows; r += kRows, c += kRows * ldc) {
    const auto multiply = kByRows[std::size_t(std::min<std::int64_t>(kRows, rows - r) - 1)];
    for (std::int64_t n = 0; n < blocks; ++n) multiply(c + n * kTileColStep, ldc, r, n, leaves, alpha);
  }
}

/// Whether one leaf of such a depth has the bits of a TileKernel of so many columns.
template <class T>
bool has_bits_of_kernel(std::int64_t depth, std::int64_t cols) {
  constexpr DType dtype = dtype_of<T>::value;
  struct alignas(64) Line {
    std::array<T, 64 / sizeof(T)> of;
  };
  const auto filled = [](std::int64_t count, std::uint32_t seed) {
    std::vector<Line> lines(std::size_t(count) * sizeof(T) / sizeof(Line));
    for (Line& line : lines) {
      for (T& x : line.of) x = T(float((seed = seed * 1664525U + 1013904223U) >> 8) / float(1 << 23) - 1.0F);
    }
    return lines;
  };
  const std::vector<Line> a = filled(kTileRows * depth, 1), b = filled(depth * cols, 2);
  struct alignas(64) FloatLine {
    std::array<float, kFloats> of;
  };
  std::vector<FloatLine> expected(std::size_t(kTileRows * cols / kFloats)), found = expected;
  TileKernel::get(dtype, kTileRows, depth, cols)(expected.front().of.data(), a.data(), b.data());
  const std::int64_t column_bytes = depth * std::int64_t(sizeof(T));
  const PackedLeaf leaf{reinterpret_cast<const char*>(a.data()), column_bytes, reinterpret_cast<const char*>(b.data()),
                        kTileColStep * column_bytes, words_of(dtype, depth, depth)};
  multiply_tile<dtype>(found.front().of.data(), cols, kTileRows, cols / kTileColStep, {&leaf, 1}, 1.0F);
  return std::memcmp(expected.data(), found.data(), expected.size() * sizeof(FloatLine)) == 0;
}

template <class T>
bool has_bits_of_kernels() {
  constexpr DType dtype = dtype_of<T>::value;
  if (!TileKernel::reads_blocks(dtype)) return false;
  constexpr std::array<std::int64_t, 5> kDepths = {32, 64, 192, 416, kLeafTileDepth};
  return std::all_of(kDepths.begin(), kDepths.end(), [](std::int64_t depth) {
    return has_bits_of_kernel<T>(depth, kTileColStep) && has_bits_of_kernel<T>(depth, kTileCols);
  });
}

}  // namespace

bool has_leaf_tiles(DType dtype) {
#ifdef __AVX512BF16__
  static const bool bf16_tiles = has_bits_of_kernels<bf16>();
#else
  constexpr bool bf16_tiles = false;
#endif
  static const bool f32_tiles = has_bits_of_kernels<float>();
  return dtype == DType::bf16 ? bf16_tiles : f32_tiles;
}

void leaf_tile(DType dtype, float* c, std::int64_t ldc, std::int64_t rows, std::int64_t blocks,
               std::span<const PackedLeaf> leaves, float alpha) {
  if (dtype == DType::bf16) {
    multiply_tile<DType::bf16>(c, ldc, rows, blocks, leaves, alpha);
  } else {
    multiply_tile<DType::f32>(c, ldc, rows, blocks, leaves, alpha);
  }
}
#else
bool has_leaf_tiles(DType /*dtype*/) { return false; }

void leaf_tile(DType dtype, float* /*c*/, std::int64_t /*ldc*/, std::int64_t /*rows*/, std::int64_t /*blocks*/,
               std::span<const PackedLeaf> /*leaves*/, float /*alpha*/) {
  FLANMOE_EXPECT(false, "no tiles of leaves in {} on this processor", name_of(dtype));
}
#endif

}  // namespace flanmoe::cpu
