#include "kernels/matmul.hpp"

#include <omp.h>

#include <cmath>
#include <numeric>

#include "kernels/cuda_tables.hpp"
#include "kernels/kernel_test.hpp"
#include "kernels/thread_test.hpp"

namespace flanmoe::test {
namespace {

const auto devices = devices_of(reference::matmul_kernels, cpu::matmul_kernels, cuda_matmul);
const auto fast_devices = fast_devices_of(cpu::matmul_kernels, cuda_matmul);
constexpr Transpose no = Transpose::no;
constexpr Transpose yes = Transpose::yes;

/// Rounding of a sum of `depth` products in fp32, relative to the largest result: grows like the square root.
double sum_rounding(std::int64_t depth) { return 8 * roundoff(DType::f32) * std::sqrt(double(depth) + 1); }

/// Boundaries of groups of the given sizes.
std::vector<std::int64_t> boundaries(const std::vector<std::int64_t>& counts) {
  std::vector<std::int64_t> first(counts.size() + 1, 0);
  std::partial_sum(counts.begin(), counts.end(), first.begin() + 1);
  return first;
}

TEST(Matmul, ProductOfSmallMatricesIsAsByHand) {
  for (const DType type : {DType::f32, DType::bf16, DType::f64}) {
    for (const auto& device : devices) {
      if (type == DType::f64 && device.device != "reference") continue;
      TestContext context;
      Buffer a(type, 2, 3), b(type, 3, 2), at(type, 3, 2), bt(type, 2, 3);
      a.assign({1, 2, 3, 4, 5, 6});
      at.assign({1, 4, 2, 5, 3, 6});
      b.assign({7, 8, 9, 10, 11, 12});
      bt.assign({7, 9, 11, 8, 10, 12});
      const std::vector<double> expected = {58, 64, 139, 154};
      Buffer y(accumulate_dtype(type), 2, 2);

      device.kernels.product(context, y, a, no, b, no, 0);
      EXPECT_EQ(y.values(), expected) << device.device;
      device.kernels.product(context, y, at, yes, b, no, 0);
      EXPECT_EQ(y.values(), expected) << device.device;
      device.kernels.product(context, y, a, no, bt, yes, 0);
      EXPECT_EQ(y.values(), expected) << device.device;
      device.kernels.product(context, y, at, yes, bt, yes, 1);
      EXPECT_EQ(y.values(), (std::vector<double>{116, 128, 278, 308})) << device.device;
    }
  }
}

struct Case {
  std::int64_t rows, inner, cols;
};

/// One product on every device against the reference, with padded strides.
void compare_product(DType in, DType out, Case c, Transpose ta, Transpose tb, float beta, std::int64_t padding) {
  TestContext context;
  Buffer a = ta == yes ? Buffer(in, c.inner, c.rows, padding) : Buffer(in, c.rows, c.inner, padding);
  Buffer b = tb == yes ? Buffer(in, c.cols, c.inner, padding) : Buffer(in, c.inner, c.cols, padding);
  a.randomize(1);
  b.randomize(2);
  Buffer expected(out, c.rows, c.cols, padding);
  if (beta != 0) expected.randomize(3);
  reference::matmul_kernels.product(context, expected, a, ta, b, tb, beta);
  for (const auto& device : fast_devices) {
    Buffer y(out, c.rows, c.cols, padding);
    if (beta != 0) y.randomize(3);
    device.kernels.product(context, y, a, ta, b, tb, beta);
    expect_close(y, expected, sum_rounding(c.inner),
                 fmt::format("{}: {} -> {}, {} x {} x {}, transposed {} {}, beta {}, padding {}", device.device,
                             name_of(in), name_of(out), c.rows, c.inner, c.cols, int(ta), int(tb), beta, padding));
  }
}

TEST(Matmul, ProductEqualsReferenceOnOddSizes) {
  for (const Case c : {Case{1, 1, 1}, Case{1, 64, 300}, Case{5, 7, 3}, Case{67, 71, 129}, Case{130, 33, 65},
                       Case{64, 128, 256}, Case{33, 200, 321}, Case{72, 8, 64}, Case{8, 24, 72}, Case{56, 40, 192}}) {
    for (const Transpose ta : {no, yes}) {
      for (const Transpose tb : {no, yes}) {
        for (const std::int64_t padding : {0, 3, 32}) {
          compare_product(DType::f32, DType::f32, c, ta, tb, 0, padding);
          compare_product(DType::bf16, DType::bf16, c, ta, tb, 0, padding);
          compare_product(DType::bf16, DType::f32, c, ta, tb, 1, padding);
        }
      }
    }
  }
  compare_product(DType::f32, DType::f32, {67, 71, 129}, no, no, 1, 5);
  compare_product(DType::f32, DType::bf16, {67, 71, 129}, no, no, 0, 5);
}

TEST(Matmul, ProductEqualsReferenceForDepthsThatNeedSeveralSlices) {
  for (const Transpose ta : {no, yes}) {
    compare_product(DType::f32, DType::f32, {35, 4500, 40}, ta, no, 1, 0);
    compare_product(DType::bf16, DType::f32, {35, 9001, 40}, ta, no, 0, 0);
    compare_product(DType::bf16, DType::bf16, {35, 9001, 40}, ta, yes, 0, 1);
  }
}

TEST(Matmul, ProductEqualsReferenceWhenOperandsExceedTheSharedMemory) {
  // 8 MiB hold 1024 columns of 2048 fp32: both sides need a second panel.
  compare_product(DType::f32, DType::f32, {30, 2048, 1100}, no, no, 0, 0);
  compare_product(DType::f32, DType::f32, {1100, 2048, 20}, yes, no, 0, 0);
}

TEST(Matmul, EmptyOperandsGiveZerosOrNothing) {
  for (const auto& device : devices) {
    TestContext context;
    Buffer a(DType::f32, 3, 0), b(DType::f32, 0, 4), y(DType::f32, 3, 4, 2);
    device.kernels.product(context, y, a, no, b, no, 0);
    EXPECT_EQ(y.values(), std::vector<double>(12, 0.0)) << device.device;
    y.fill(2);
    device.kernels.product(context, y, a, no, b, no, 1);
    EXPECT_EQ(y.values(), std::vector<double>(12, 2.0)) << device.device;

    Buffer none(DType::f32, 0, 5), w(DType::f32, 5, 4), nothing(DType::f32, 0, 4);
    device.kernels.product(context, nothing, none, no, w, no, 0);
  }
}

TEST(Matmul, OperandsThatDoNotFitAreRefused) {
  for (const auto& device : devices) {
    TestContext context;
    Buffer a(DType::f32, 3, 4), b(DType::f32, 5, 6), y(DType::f32, 3, 6), b_bf16(DType::bf16, 4, 6);
    EXPECT_THROW(device.kernels.product(context, y, a, no, b, no, 0), LogicError) << device.device;
    EXPECT_THROW(device.kernels.product(context, y, a, no, b_bf16, no, 0), LogicError) << device.device;
    const std::vector<std::int64_t> wrong = {0, 2, 4};
    Buffer w(DType::f32, 4, 6, 0, 2);
    EXPECT_THROW(device.kernels.grouped(context, y, a, w, no, wrong), LogicError) << device.device;
  }
  TestContext context;
  Buffer a(DType::f64, 3, 4), b(DType::f64, 4, 6), y(DType::f64, 3, 6);
  EXPECT_THROW(cpu::matmul_kernels.product(context, y, a, no, b, no, 0), LogicError) << "f64 is for the reference";
}

void compare_grouped(DType type, const std::vector<std::int64_t>& counts, std::int64_t depth, std::int64_t cols,
                     Transpose transpose, std::int64_t padding) {
  TestContext context;
  const auto first = boundaries(counts);
  const auto groups = std::int64_t(counts.size());
  Buffer x(type, first.back(), depth, padding), expected(type, first.back(), cols, padding);
  Buffer w = transpose == yes ? Buffer(type, cols, depth, 0, groups) : Buffer(type, depth, cols, 0, groups);
  x.randomize(4);
  w.randomize(5);
  reference::matmul_kernels.grouped(context, expected, x, w, transpose, first);
  for (const auto& device : fast_devices) {
    Buffer y(type, first.back(), cols, padding);
    device.kernels.grouped(context, y, x, w, transpose, first);
    expect_close(y, expected, sum_rounding(depth),
                 fmt::format("{}: grouped {} {}", device.device, name_of(type), int(transpose)));
  }
}

TEST(Matmul, GroupedEqualsReferenceWithEmptyAndHotGroups) {
  const std::vector<std::int64_t> counts = {0, 1, 17, 0, 400, 64, 5, 0};
  for (const DType type : {DType::f32, DType::bf16}) {
    for (const Transpose transpose : {no, yes}) {
      for (const std::int64_t padding : {0, 3}) compare_grouped(type, counts, 39, 70, transpose, padding);
      compare_grouped(type, counts, 64, 128, transpose, 0);
      compare_grouped(type, {0, 0, 0}, 64, 128, transpose, 0);
      compare_grouped(type, {3, 70}, 4200, 8, transpose, 0);
    }
  }
}

void compare_weight_gradient(DType type, const std::vector<std::int64_t>& counts, std::int64_t depth, std::int64_t cols,
                             float beta, std::int64_t padding = 1) {
  TestContext context;
  const auto first = boundaries(counts);
  Buffer x(type, first.back(), depth, 3), dy(type, first.back(), cols, 3);
  x.randomize(6);
  dy.randomize(7);
  const auto run = [&](const MatmulKernels& kernels, bool reference) {
    std::vector<Buffer> dw;
    std::vector<Tensor> views;
    for (std::size_t g = 0; g < counts.size(); ++g) {
      dw.emplace_back(DType::f32, depth, cols, padding * (std::int64_t(g) % 3)).randomize(8 + g);
      if (beta == 0.0F && !reference) dw.back().fill(std::nan(""));
      views.push_back(dw.back());
    }
    kernels.grouped_weight_gradient(context, views, x, dy, first, beta);
    return dw;
  };
  const std::vector<Buffer> expected = run(reference::matmul_kernels, true);
  for (const auto& device : fast_devices) {
    const std::vector<Buffer> got = run(device.kernels, false);
    for (std::size_t g = 0; g < counts.size(); ++g) {
      expect_close(got[g], expected[g], sum_rounding(counts[g]),
                   fmt::format("{}: group {} in {}", device.device, g, name_of(type)));
    }
  }
}

TEST(Matmul, WeightGradientEqualsReferenceWithEmptyAndHotGroups) {
  for (const DType type : {DType::f32, DType::bf16}) {
    for (const float beta : {0.0F, 1.0F}) {
      compare_weight_gradient(type, {0, 1, 33, 0, 700, 2}, 70, 40, beta);
      compare_weight_gradient(type, {64, 31, 5}, 64, 300, beta);
      compare_weight_gradient(type, {0, 0}, 10, 20, beta);
      compare_weight_gradient(type, {4500}, 20, 30, beta);
      compare_weight_gradient(type, {40, 0, 9}, 136, 128, beta, 0);  // tiles that lie in the gradient as they are
      compare_weight_gradient(type, {5000, 30}, 64, 192, beta, 0);   // deeper than one of them
      // Many groups, which threads share out whole; one is deeper than a tile.
      std::vector<std::int64_t> many(std::size_t(8 * omp_get_max_threads()), 3);
      many[1] = 0;
      many[2] = 4500;
      compare_weight_gradient(type, many, 70, 130, beta);
    }
  }
}

/// x without the 13 lowest bits of fraction, rounded to nearest even.
double tf32(double x) {
  const double unit = std::ldexp(1.0, std::ilogb(x) - 10);
  return x == 0 ? 0 : std::nearbyint(x / unit) * unit;
}
Buffer in_tf32(const Buffer& x) {
  Buffer rounded(DType::f32, x.view().rows, x.view().cols, 0, x.view().batch);
  for (std::int64_t i = 0; i < x.size(); ++i) rounded.set(i, tf32(x.get(i)));
  return rounded;
}

TEST(Matmul, Tf32RoundsOperandsOnGpusOnly) {
  TestContext test_context;
  KernelContext& context = test_context;
  const std::vector<std::int64_t> first = {0, 5, 24};
  Buffer x(DType::f32, 24, 32), w(DType::f32, 32, 40, 0, 2), narrow(DType::bf16, 24, 32), w_narrow(DType::bf16, 32, 40);
  narrow.randomize(20);
  w_narrow.randomize(21);
  const Buffer x_rounded = in_tf32(x.randomize(18)), w_rounded = in_tf32(w.randomize(19));
  const auto products = [&](const MatmulKernels& k, const Buffer& a, const Buffer& b) {
    std::vector<Buffer> y;
    for (int i = 0; i < 3; ++i) y.emplace_back(DType::f32, 24, 40);
    k.product(context, y[0], a, no, b.view().matrix(0), no, 0);
    k.grouped(context, y[1], a, b, no, first);
    k.product(context, y[2], narrow, no, w_narrow, no, 0);
    return y;
  };
  for (const auto& device : devices) {
    context.tf32 = false;
    const std::vector<Buffer> full = products(device.kernels, x, w),
                              rounded = products(device.kernels, x_rounded, w_rounded);
    context.tf32 = true;
    const std::vector<Buffer> found = products(device.kernels, x, w);
    const bool rounds = device.device == "cuda";
    for (std::size_t i = 0; i < 3; ++i) {
      const bool fp32 = i < 2;
      // A GPU may round, the emulated one does.
      const double allowed = rounds && fp32 && !FLANMOE_CUDA_EMULATED ? 0x1p-9 : sum_rounding(32);
      expect_close(found[i], rounds ? rounded[i] : full[i], allowed, device.device);
      const bool same = same_bits(found[i], full[i]);
      if (!rounds || !fp32) {
        EXPECT_TRUE(same) << device.device << " " << i;
      } else if (FLANMOE_CUDA_EMULATED) {
        EXPECT_FALSE(same) << i;
      }
    }
  }
}

TEST(Matmul, FullPrecisionEndsWithItsScope) {
  KernelContext context{.tf32 = true};
  {
    const FullPrecision exact(context);
    EXPECT_FALSE(context.tf32);
  }
  EXPECT_TRUE(context.tf32);
}

/// Neighbours first, then pairs of neighbours, ...
std::vector<double> tree_of(std::vector<std::vector<double>> leaves) {
  for (std::size_t n = leaves.size(); n > 1; n /= 2) {
    for (std::size_t i = 0; i < n / 2; ++i) {
      for (std::size_t j = 0; j < leaves[i].size(); ++j) {
        leaves[i][j] = double(float(leaves[2 * i][j]) + float(leaves[2 * i + 1][j]));
      }
    }
  }
  return leaves.front();
}

/// Weight gradients of groups whose rows are cut into leaves, against the same leaves computed one by one.
void compare_leaves(const Implementation<MatmulKernels>& device, DType type, std::size_t leaves,
                    const std::vector<std::int64_t>& counts, std::int64_t depth, std::int64_t cols, float beta) {
  TestContext context;
  const auto first = boundaries(counts);
  Buffer x(type, first.back(), depth, 3), dy(type, first.back(), cols, 3);
  x.randomize(6);
  dy.randomize(7);
  std::vector<Buffer> dw;
  std::vector<Tensor> views;
  for (std::size_t g = 0; g < counts.size() / leaves; ++g) {
    dw.emplace_back(DType::f32, depth, cols, std::int64_t(g)).fill(beta == 0.0F ? std::nan("") : 3.0);
    views.push_back(dw.back());
  }
  device.kernels.grouped_weight_gradient(context, views, x, dy, first, beta);
  for (std::size_t g = 0; g < dw.size(); ++g) {
    std::vector<std::vector<double>> alone;
    for (std::size_t leaf = g * leaves; leaf < (g + 1) * leaves; ++leaf) {
      Buffer one(DType::f32, depth, cols);
      const Tensor view = one;
      device.kernels.grouped_weight_gradient(context, {&view, 1}, x.view().slice_rows(first[leaf], counts[leaf]),
                                             dy.view().slice_rows(first[leaf], counts[leaf]),
                                             std::vector<std::int64_t>{0, counts[leaf]}, 0);
      alone.push_back(one.values());
    }
    std::vector<double> expected = tree_of(alone);
    for (double& value : expected) value = double(float(value) + 3.0F * beta);
    EXPECT_TRUE(dw[g].values() == expected)
        << fmt::format("{} {}: group {} of {} leaves, {} x {}", device.device, name_of(type), g, leaves, depth, cols);
  }
}

TEST(Matmul, LeavesAreProductsOfTheirOwnThatOneTreeAdds) {
  for (const auto& device : {devices[0], devices[1]}) {  // reference and cpu
    for (const DType type : {DType::f32, DType::bf16}) {
      compare_leaves(device, type, 2, {40, 33, 0, 7, 9, 0}, 70, 40, 0);
      compare_leaves(device, type, 4, {1, 0, 17, 64, 0, 0, 0, 0}, 64, 300, 1);
      compare_leaves(device, type, 8, {120, 90, 0, 8, 300, 31, 32, 1}, 130, 128, 0);
      compare_leaves(device, type, 16, {5, 9, 3, 8, 0, 2, 1, 4, 6, 7, 9, 11, 40, 1, 1, 2}, 20, 200, 0);
    }
  }
  for (const DType type : {DType::f32, DType::bf16}) {
    const auto& cpu = devices[1];
    compare_leaves(cpu, type, 8, {512, 700, 512, 512, 600, 512, 500, 480}, 200, 600, 0);  // two runs and more
    compare_leaves(cpu, type, 16, std::vector<std::int64_t>(16, 300), 67, 200, 1);        // the same, of small leaves
    compare_leaves(cpu, type, 8, {512, 497, 0, 480, 500, 512, 449, 1}, 200, 700, 0);      // as deep as registers go
    compare_leaves(cpu, type, 8, {512, 497, 0, 480, 500, 513, 449, 1}, 200, 700, 0);      // and one row deeper
    compare_leaves(cpu, type, 4, {1000, 5000, 9000, 0}, 70, 150, 0);                      // deeper than a tile
    compare_leaves(cpu, type, 2, {3000, 2500}, 1100, 1100, 0);                            // several areas
  }
}

TEST(Matmul, BoundariesThatAreNoLeavesAreRefused) {
  TestContext context;
  Buffer x(DType::f32, 6, 4), dy(DType::f32, 6, 3), dw(DType::f32, 4, 3);
  const Tensor view = dw;
  for (const auto& device : {devices[0], devices[1]}) {
    const auto call = [&](const std::vector<std::int64_t>& first) {
      device.kernels.grouped_weight_gradient(context, {&view, 1}, x, dy, first, 0);
    };
    EXPECT_THROW(call({0, 2, 4, 6}), LogicError) << "three leaves";
    EXPECT_THROW(call({0, 4, 3, 5, 6}), LogicError) << "not ascending";
    EXPECT_THROW(call({0, 4, 5}), LogicError) << "not all rows";
  }
}

/// The first rows of a product, computed among more and more others.
TEST(Matmul, ARowDoesNotDependOnHowManyOthersThereAre) {
  for (const DType type : {DType::f32, DType::bf16}) {
    for (const Case c : {Case{1000, 96, 80}, Case{1000, 71, 300}, Case{200, 9000, 16}}) {
      TestContext context;
      Buffer x(type, c.rows, c.inner), w(type, c.inner, c.cols, 0, 2), all(type, c.rows, c.cols);
      x.randomize(9);
      w.randomize(10);
      const Tensor w0 = w.view().matrix(0);
      cpu::matmul_kernels.product(context, all, x, no, w0, no, 0);
      for (const std::int64_t rows : {1, 2, 15, 16, 17, 31, 63, 64, 65, 100, 199}) {
        Buffer some(type, rows, c.cols), grouped(type, rows + 1, c.cols);
        cpu::matmul_kernels.product(context, some, x.view().slice_rows(0, rows), no, w0, no, 0);
        cpu::matmul_kernels.grouped(context, grouped, x.view().slice_rows(0, rows + 1), w, no,
                                    std::vector<std::int64_t>{0, rows, rows + 1});
        bool same = true;
        for (std::int64_t i = 0; i < rows * c.cols; ++i) {
          same = same && some.get(i) == all.get(i) && grouped.get(i) == all.get(i);
        }
        EXPECT_TRUE(same) << rows << " rows of " << c.rows << " in " << name_of(type) << ", depth " << c.inner;
      }
    }
  }
}

/// Widths and depths with and without padding, and a width of several panels.
TEST(Matmul, PackedWeightsGiveTheSameBits) {
  const PackedKernels& packed = *cpu::matmul_kernels.packed;
  const std::vector<std::int64_t> counts = {0, 1, 17, 0, 600, 64, 5};
  const auto first = boundaries(counts);
  for (const DType type : {DType::f32, DType::bf16}) {
    for (const auto& [depth, cols] : {std::pair{64, 128}, std::pair{39, 70}, std::pair{768, 2048}}) {
      const std::int64_t size = packed.size(type, depth, cols);
      if (size == 0) GTEST_SKIP() << "oneDNN has no blocks of its own for " << name_of(type) << " on this processor";
      for (const Transpose transpose : {no, yes}) {
        TestContext context;
        Buffer x(type, first.back(), depth), y(type, first.back(), cols), expected(type, first.back(), cols);
        Buffer w = transpose == yes ? Buffer(type, cols, depth, 0, 7) : Buffer(type, depth, cols, 0, 7);
        Buffer copy(type, 1, size, 0, 7);
        x.randomize(4);
        w.randomize(5);
        copy.fill(1);  // what is padding must be written, too
        cpu::matmul_kernels.grouped(context, expected, x, w, transpose, first);
        packed.pack(context, copy, w, transpose);
        packed.grouped(context, y, x, copy, first);
        EXPECT_TRUE(same_bits(y, expected)) << depth << " x " << cols << " in " << name_of(type) << int(transpose);
      }
    }
  }
}

TEST(Matmul, PackedWeightsThatDoNotFitAreRefused) {
  const PackedKernels& packed = *cpu::matmul_kernels.packed;
  EXPECT_EQ(packed.size(DType::f64, 64, 64), 0) << "f64 is for the reference";
  EXPECT_EQ(packed.size(DType::f32, 100000, 64), 0) << "deeper than a tile";
  const std::int64_t size = packed.size(DType::f32, 64, 64);
  if (size == 0) GTEST_SKIP() << "oneDNN has no blocks of its own on this processor";
  TestContext context;
  Buffer w(DType::f32, 64, 64, 0, 2), copy(DType::f32, 1, size, 0, 2), x(DType::f32, 8, 64), y(DType::f32, 8, 64);
  Buffer wide(DType::f32, 8, 128), small(DType::f32, 1, size - 64, 0, 2);
  const std::vector<std::int64_t> first = {0, 4, 8}, other = {0, 8};
  EXPECT_THROW(packed.pack(context, small, w, no), LogicError);
  EXPECT_THROW(packed.grouped(context, wide, x, copy, first), LogicError) << "packed for 64 columns";
  EXPECT_THROW(packed.grouped(context, y, x, copy, other), LogicError) << "of two groups";
}

TEST(Matmul, ResultsDoNotDependOnTheNumberOfThreads) {
  const std::vector<std::int64_t> counts = {0, 700, 3, 97, 200};
  const auto first = boundaries(counts);
  for (const DType type : {DType::f32, DType::bf16}) {
    Buffer x(type, 1000, 130), w(type, 130, 70, 0, 5), dy(type, 1000, 70);
    x.randomize(11);
    w.randomize(12);
    dy.randomize(13);
    expect_same_bits_on_threads([&](std::vector<Buffer>& out) {
      TestContext context;
      Buffer y(type, 1000, 70), z(type, 1000, 70), dw(DType::f32, 130, 70, 0, 5);
      dw.fill(1);
      std::vector<Tensor> dw_views;
      for (int g = 0; g < 5; ++g) dw_views.push_back(dw.view().matrix(g));
      cpu::matmul_kernels.grouped(context, y, x, w, no, first);
      cpu::matmul_kernels.product(context, z, x, no, w.view().matrix(0), no, 0);
      cpu::matmul_kernels.grouped_weight_gradient(context, dw_views, x, dy, first, 1);
      out.push_back(std::move(y));
      out.push_back(std::move(z));
      out.push_back(std::move(dw));
    });
  }
}

TEST(Matmul, GradientsOfAProductAgreeWithCentralDifferences) {
  // y = x.w: dx = dy.w^T, dw = x^T.dy, as the model uses them.
  TestContext context;
  const auto& k = reference::matmul_kernels;
  const std::vector<std::int64_t> first = {0, 2, 2, 5};
  Buffer x(DType::f64, 5, 4), w(DType::f64, 4, 3, 0, 3), y(DType::f64, 5, 3), dy(DType::f64, 5, 3);
  x.randomize(14);
  w.randomize(15);
  dy.randomize(16);
  const auto loss = [&] {
    k.grouped(context, y, x, w, no, first);
    return weighted_sum(y, dy);
  };
  Buffer dx(DType::f64, 5, 4), dw(DType::f64, 4, 3, 0, 3);
  dw.fill(0);
  k.grouped(context, dx, dy, w, yes, first);
  std::vector<Tensor> dw_views;
  for (int g = 0; g < 3; ++g) dw_views.push_back(dw.view().matrix(g));
  k.grouped_weight_gradient(context, dw_views, x, dy, first, 1);
  expect_gradient(dx, loss, x, "dx");
  expect_gradient(dw, loss, w, "dw");
}

}  // namespace
}  // namespace flanmoe::test
