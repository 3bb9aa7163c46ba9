// Tiles of sums of leaves, against sums in double: where they are wrong, products quietly go another way.
#include "kernels/cpu/leaf_tile.hpp"

#include <gtest/gtest.h>

#include <cmath>
#include <random>
#include <vector>

#include "kernels/cpu/packing.hpp"

namespace flanmoe::cpu {
namespace {

#ifdef __AVX512F__
constexpr std::int64_t kBlocks = 3, kCols = kBlocks * kTileColStep;

/// Operands of a leaf, plain and packed.
template <class T>
struct Leaf {
  Leaf(std::int64_t rows, std::int64_t depth_in, std::mt19937& random) : depth(depth_in) {
    constexpr DType dtype = dtype_of<T>::value;
    const std::int64_t padded = round_up(depth, depth_step(dtype));
    std::uniform_real_distribution<float> values(-1.0F, 1.0F);
    for (auto* operand : {&a, &b}) {
      operand->resize(std::size_t(depth * (operand == &a ? rows : kCols)));
      for (T& x : *operand) x = T(values(random));
    }
    packed_a.resize(std::size_t(rows * padded) * sizeof(T) / sizeof(Line));
    packed_b.resize(std::size_t(padded * kCols) * sizeof(T) / sizeof(Line));
    const Tensor a_RK = make_tensor(a.data(), rows, depth), b_KN = make_tensor(b.data(), depth, kCols);
    pack_a(packed_a.data(), dtype, {&a_RK, false, 0, rows, 0, depth}, rows, padded);
    pack_b(packed_b.data(), dtype, {&b_KN, false, 0, depth, 0, kCols}, padded, kCols, TileKernel::blocks_of(dtype));
    const std::int64_t column_bytes = padded * std::int64_t(sizeof(T));
    packed = {reinterpret_cast<const char*>(packed_a.data()), column_bytes,
              reinterpret_cast<const char*>(packed_b.data()), kTileColStep * column_bytes,
              words_of(dtype, depth, padded)};
  }
  double product(std::int64_t row, std::int64_t col) const {
    double sum = 0;
    for (std::int64_t k = 0; k < depth; ++k) {
      sum += double(float(a[std::size_t(row * depth + k)])) * double(float(b[std::size_t(k * kCols + col)]));
    }
    return sum;
  }

  struct alignas(64) Line {
    char bytes[64];
  };
  std::int64_t depth;
  std::vector<T> a, b;
  std::vector<Line> packed_a, packed_b;
  PackedLeaf packed;
};

template <class T>
void expect_sums(std::int64_t rows, const std::vector<std::int64_t>& depths) {
  constexpr float kAlpha = 0.5F, kUntouched = 7.0F;
  constexpr std::int64_t kStride = kCols + 5;
  std::mt19937 random(1);
  std::vector<Leaf<T>> leaves;
  std::vector<PackedLeaf> packed;
  for (const std::int64_t depth : depths) packed.push_back(leaves.emplace_back(rows, depth, random).packed);
  std::vector<float> c(std::size_t((rows + 1) * kStride), kUntouched);

  leaf_tile(dtype_of<T>::value, c.data(), kStride, rows, kBlocks, packed, kAlpha);

  for (std::int64_t i = 0; i <= rows; ++i) {
    for (std::int64_t j = 0; j < kStride; ++j) {
      double expected = kUntouched;
      if (i < rows && j < kCols) {
        expected = 0;
        for (const Leaf<T>& leaf : leaves) expected += kAlpha * leaf.product(i, j);
      }
      ASSERT_NEAR(c[std::size_t(i * kStride + j)], expected, 1e-4) << rows << " rows, at " << i << ", " << j;
    }
  }
}

TEST(LeafTile, IsTheSumOfItsLeaves) {
  for (const std::int64_t rows : {1, 5, 6, 64}) {
    for (const std::vector<std::int64_t>& depths :
         {std::vector<std::int64_t>{64}, {30, 7}, {1, 40, 512, 9}, {8, 8, 3, 100, 17, 1, 64, 33}}) {
      expect_sums<float>(rows, depths);
#ifdef __AVX512BF16__
      expect_sums<bf16>(rows, depths);
#endif
    }
  }
}
#else
TEST(LeafTile, IsTheSumOfItsLeaves) { GTEST_SKIP() << "needs AVX-512"; }
#endif

}  // namespace
}  // namespace flanmoe::cpu
