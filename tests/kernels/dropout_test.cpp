#include "kernels/dropout.hpp"

#include "kernels/cuda_tables.hpp"
#include "kernels/kernel_test.hpp"
#include "kernels/thread_test.hpp"

namespace flanmoe {
namespace {

using test::Buffer;
using test::TestContext;

/// Tokens in rows of `row_length`; the mask is shared inside a row when `shared`.
struct Problem {
  Problem(DType c, std::int64_t T, std::int64_t D, float rate, std::int64_t row_length, bool shared, int columns = 1,
          std::int64_t padding = 3)
      : x(c, T, D, padding), y(c, T, D, padding), residual(accumulate_dtype(c), T, D, padding) {
    x.randomize(1);
    residual.randomize(2);
    for (std::int64_t t = 0; t < T; ++t) {
      row_T.push_back((std::int64_t{1} << 33) + t / row_length);
      position_T.push_back(shared ? 0 : std::int32_t(t % row_length));
    }
    mask = {
        rate, {.seed = 12345, .purpose = RandomPurpose::dropout, .step = 7, .layer = 3}, row_T, position_T, columns};
  }
  std::int64_t dropped() const {
    std::int64_t count = 0;
    for (const double value : y.values()) count += value == 0 ? 1 : 0;
    return count;
  }
  TestContext context;
  Buffer x, y, residual;
  std::vector<std::int64_t> row_T;
  std::vector<std::int32_t> position_T;
  DropoutMask mask;
};

TEST(Dropout, MaskIsTheDocumentedFunction) {
  for (const auto& device : test::devices_of(reference::dropout_kernels, cpu::dropout_kernels, test::cuda_dropout)) {
    for (const int columns : {1, 3, 4, 64}) {
      Problem p(DType::f32, 5, 301, 0.25F, 2, false, columns);
      p.x.fill(3);
      device.kernels.apply(p.context, p.y, p.x, p.mask);
      for (std::int64_t t = 0; t < 5; ++t) {
        for (std::int64_t c = 0; c < 301; ++c) {
          const std::int64_t word = c / columns;
          const auto block = philox4x32({std::uint32_t(t / 2), 2, std::uint32_t(t % 2), std::uint32_t(word / 4)},
                                        p.mask.key.philox_key());
          const bool kept = double(block[std::size_t(word % 4)]) / 0x1p32 >= 0.25;
          ASSERT_EQ(p.y.get(t * 301 + c), kept ? 4.0 : 0.0) << device.device << " " << t << " " << c;
        }
      }
    }
  }
}

TEST(Dropout, KeepsAWordThatEqualsTheRate) {
  for (const auto& device : test::devices_of(reference::dropout_kernels, cpu::dropout_kernels, test::cuda_dropout)) {
    Problem p(DType::f32, 1, 4096, 0.5F, 1, false);
    p.x.fill(1);
    int found = 0;
    for (std::int64_t c = 0; c < 4096; ++c) {
      const std::uint32_t word =
          p.mask.key.words(std::uint64_t(p.row_T[0]), 0, std::uint32_t(c / 4))[std::size_t(c % 4)];
      if (word % 256 != 0 || word == 0) continue;  // only 24 bits fit into a rate
      p.mask.rate = float(word) * 0x1p-32F;
      device.kernels.apply(p.context, p.y, p.x, p.mask);
      EXPECT_GT(p.y.get(c), 0) << device.device << " " << c;
      ++found;
    }
    EXPECT_GT(found, 0);
  }
}

TEST(Dropout, KeepsTheRightFraction) {
  for (const float rate : {0.05F, 0.5F, 0.9F}) {
    Problem p(DType::f32, 200, 700, rate, 200, false);
    cpu::dropout_kernels.apply(p.context, p.y, p.x, p.mask);
    const double n = 200.0 * 700.0;
    const double sigma = std::sqrt(n * double(rate) * (1 - double(rate)));
    EXPECT_NEAR(double(p.dropped()), n * double(rate), 4 * sigma) << rate;
  }
}

TEST(Dropout, FastEqualsReferenceOnOddSizes) {
  for (const DType c : {DType::f32, DType::bf16}) {
    for (const auto& [T, D, padding] :
         {std::tuple{0, 5, 3}, {1, 1, 3}, {7, 3, 3}, {130, 67, 3}, {3, 1024, 8}, {5, 2051, 3}, {9, 48, 0}}) {
      for (const int columns : {1, 5, 64}) {
        Problem expected(c, T, D, 0.3F, 4, false, columns, padding);
        reference::dropout_kernels.apply(expected.context, expected.y, expected.x, expected.mask);
        reference::dropout_kernels.add(expected.context, expected.residual, expected.x, expected.mask);
        for (const auto& device : test::fast_devices_of(cpu::dropout_kernels, test::cuda_dropout)) {
          Problem actual(c, T, D, 0.3F, 4, false, columns, padding);
          device.kernels.apply(actual.context, actual.y, actual.x, actual.mask);
          EXPECT_TRUE(same_bits(actual.y, expected.y)) << device.device << " " << T << " x " << D;
          device.kernels.add(actual.context, actual.residual, actual.x, actual.mask);
          test::expect_close(actual.residual, expected.residual, 1e-7, device.device + " residual");
        }
      }
    }
  }
}

TEST(Dropout, MaskDoesNotDependOnTheLayout) {
  for (const auto& device : test::devices_of(reference::dropout_kernels, cpu::dropout_kernels, test::cuda_dropout)) {
    for (const bool shared : {false, true}) {
      Problem whole(DType::f32, 150, 90, 0.4F, 40, shared), parts(DType::f32, 150, 90, 0.4F, 40, shared);
      device.kernels.apply(whole.context, whole.y, whole.x, whole.mask);
      for (const auto& [first, count] : {std::pair<std::int64_t, std::int64_t>{0, 61}, {61, 1}, {62, 88}}) {
        DropoutMask mask = parts.mask;
        mask.row_T = mask.row_T.subspan(std::size_t(first), std::size_t(count));
        mask.position_T = mask.position_T.subspan(std::size_t(first), std::size_t(count));
        device.kernels.apply(parts.context, parts.y.view().slice_rows(first, count),
                             parts.x.view().slice_rows(first, count), mask);
      }
      EXPECT_TRUE(same_bits(whole.y, parts.y)) << device.device;
    }
  }
}

TEST(Dropout, TokensOfARowShareTheirMask) {
  for (const auto& device : test::devices_of(reference::dropout_kernels, cpu::dropout_kernels, test::cuda_dropout)) {
    Problem p(DType::f32, 90, 33, 0.5F, 30, true);
    p.x.fill(1);
    device.kernels.apply(p.context, p.y, p.x, p.mask);
    int differences = 0;
    for (std::int64_t t = 1; t < 90; ++t) {
      for (std::int64_t c = 0; c < 33; ++c) {
        const bool same = p.y.get(t * 33 + c) == p.y.get((t - 1) * 33 + c);
        ASSERT_TRUE(same || t % 30 == 0) << device.device << " token " << t;
        differences += same ? 0 : 1;
      }
    }
    EXPECT_GT(differences, 10) << "rows must not share a mask";
  }
}

TEST(Dropout, OfAGradientIsTheBackward) {
  TestContext context;
  Problem p(DType::f64, 4, 11, 0.35F, 3, false);
  Buffer dy(DType::f64, 4, 11), dx(DType::f64, 4, 11);
  dy.randomize(8);
  reference::dropout_kernels.apply(context, dx, dy, p.mask);
  const auto loss = [&] {
    Buffer y(DType::f64, 4, 11);
    reference::dropout_kernels.apply(context, y, p.x, p.mask);
    return test::weighted_sum(y, dy);
  };
  test::expect_gradient(dx, loss, p.x, "dx");
}

TEST(Dropout, RateZeroIsTheIdentityAndReadsNoPositions) {
  for (const auto& device : test::devices_of(reference::dropout_kernels, cpu::dropout_kernels, test::cuda_dropout)) {
    Problem p(DType::bf16, 6, 19, 0.0F, 3, false);
    const auto before = p.residual.values();
    device.kernels.apply(p.context, p.y, p.x, DropoutMask{});
    EXPECT_TRUE(same_bits(p.y, p.x)) << device.device;
    device.kernels.add(p.context, p.residual, p.x, DropoutMask{});
    for (std::int64_t i = 0; i < p.x.size(); ++i) {
      EXPECT_EQ(float(p.residual.get(i)), float(before[std::size_t(i)]) + float(p.x.get(i))) << device.device;
    }
  }
}

TEST(Dropout, DropsInfinitiesAndWorksInPlace) {
  for (const auto& device : test::devices_of(reference::dropout_kernels, cpu::dropout_kernels, test::cuda_dropout)) {
    Problem p(DType::f32, 8, 50, 0.5F, 8, false);
    p.x.fill(std::numeric_limits<double>::infinity());
    device.kernels.apply(p.context, p.x, p.x, p.mask);
    int zeros = 0;
    for (const double value : p.x.values()) {
      EXPECT_FALSE(std::isnan(value));
      zeros += value == 0 ? 1 : 0;
    }
    EXPECT_GT(zeros, 100) << device.device;
  }
}

TEST(Dropout, BitsDoNotDependOnThreads) {
  test::expect_same_bits_on_threads([](std::vector<Buffer>& out) {
    Problem p(DType::f32, 333, 131, 0.1F, 50, true);
    cpu::dropout_kernels.apply(p.context, p.y, p.x, p.mask);
    cpu::dropout_kernels.add(p.context, p.residual, p.x, p.mask);
    out.push_back(std::move(p.y));
    out.push_back(std::move(p.residual));
  });
}

TEST(Dropout, RejectsBadMasks) {
  for (const auto& device : test::devices_of(reference::dropout_kernels, cpu::dropout_kernels, test::cuda_dropout)) {
    Problem p(DType::f32, 4, 3, 1.0F, 2, false);
    EXPECT_THROW(device.kernels.apply(p.context, p.y, p.x, p.mask), LogicError);
    p.mask.rate = 0.5F;
    p.mask.row_T = p.mask.row_T.first(3);
    EXPECT_THROW(device.kernels.apply(p.context, p.y, p.x, p.mask), LogicError);
  }
}

}  // namespace
}  // namespace flanmoe
