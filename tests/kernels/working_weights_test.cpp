// Masters on their way to working weights: conversions, and rounding at random.
#include <bit>
#include <limits>

#include "kernels/cuda_tables.hpp"
#include "kernels/kernel_test.hpp"
#include "kernels/optimizer.hpp"

namespace flanmoe {
namespace {

using test::Buffer;
using test::TestContext;

const auto devices = test::devices_of(reference::optimizer_kernels, cpu::optimizer_kernels, test::cuda_optimizer);

const RandomKey rounding{7, RandomPurpose::rounding, 3, 0};

TEST(WorkingWeights, WeightsAreWrittenInTheTypeOfTheirTarget) {
  for (const auto& device : devices) {
    for (const std::int64_t padding : {0, 3}) {
      TestContext context;
      Buffer from(DType::f32, 5, 24, padding), same(DType::f32, 5, 24, padding), narrow(DType::bf16, 5, 24, padding);
      from.randomize(1);
      Buffer rounded(DType::bf16, 5, 24, padding);
      rounded.copy_from(from);
      device.kernels.write_weights(context, std::array{WeightCopy{same, from}, WeightCopy{narrow, from}}, nullptr);
      EXPECT_TRUE(same_bits(same, from)) << device.device;
      EXPECT_TRUE(same_bits(narrow, rounded)) << device.device;
      // fp32 is not rounded.
      device.kernels.write_weights(context, std::array{WeightCopy{same, from}}, &rounding);
      EXPECT_TRUE(same_bits(same, from)) << device.device;
    }
  }
}

TEST(WorkingWeights, RandomRoundingIsTheCarryOfHalfAPhiloxWord) {
  for (const auto& device : devices) {
    for (const std::int64_t padding : {0, 3}) {
      for (const std::int64_t first : {0, 5, 1 << 20}) {
        for (const auto& [rows, cols] : {std::pair{1, 1}, {3, 37}, {4, 16}, {1, 3000}, {11, 2048}}) {
          TestContext context;
          Buffer from(DType::f32, rows, cols, padding), to(DType::bf16, rows, cols, padding);
          from.randomize(2);
          device.kernels.write_weights(context, std::array{WeightCopy{to, from, 42, 6, first}}, &rounding);
          for (std::int64_t i = 0; i < from.size(); ++i) {
            const std::int64_t element = first + i;
            const auto words = rounding.words(42, 6, std::uint32_t(element / 8));
            const std::uint32_t word = words[std::size_t(element % 8 / 2)];
            const std::uint32_t half = element % 2 == 0 ? word & 0xffffU : word >> 16U;
            const std::uint32_t sum = std::bit_cast<std::uint32_t>(float(from.get(i))) + half;
            ASSERT_EQ(to.get(i), double(std::bit_cast<float>(sum & 0xffff0000U)))
                << device.device << ", " << rows << " x " << cols << ", element " << i;
          }
        }
      }
    }
  }
}

TEST(WorkingWeights, RandomRoundingOfAPieceIsThatOfTheWhole) {
  for (const auto& device : devices) {
    TestContext context;
    Buffer from(DType::f32, 9, 40), whole(DType::bf16, 9, 40), pieces(DType::bf16, 9, 40);
    from.randomize(2);
    device.kernels.write_weights(context, std::array{WeightCopy{whole, from, 42, 6}}, &rounding);
    std::vector<WeightCopy> list;
    for (const auto& [row, count] : {std::pair{0, 2}, {2, 4}, {6, 3}}) {
      list.push_back({pieces.view().slice_rows(row, count), from.view().slice_rows(row, count), 42, 6, row * 40});
    }
    device.kernels.write_weights(context, list, &rounding);
    EXPECT_TRUE(same_bits(whole, pieces)) << device.device;
  }
}

TEST(WorkingWeights, RandomRoundingKeepsWhatNeedsNone) {
  for (const auto& device : devices) {
    TestContext context;
    Buffer from(DType::f32, 3, 64), to(DType::bf16, 3, 64), expected(DType::bf16, 3, 64);
    expected.randomize(4, 100);
    from.copy_from(expected);
    const double infinity = std::numeric_limits<double>::infinity();
    for (const double x : {infinity, -infinity, 0.0, -0.0}) {
      const auto i = std::int64_t(from.size()) - 1 - (x == 0 ? 2 : 0) - (std::signbit(x) ? 1 : 0);
      from.set(i, x);
      expected.set(i, x);
    }
    device.kernels.write_weights(context, std::array{WeightCopy{to, from}}, &rounding);
    EXPECT_TRUE(same_bits(to, expected)) << device.device;

    // The NaN whose carry would run over into a zero.
    Buffer nan(DType::f32, 1, 64), stays(DType::bf16, 1, 64);
    for (std::int64_t i = 0; i < 64; ++i) nan.set(i, double(std::bit_cast<float>(0x7fffffffU)));
    device.kernels.write_weights(context, std::array{WeightCopy{stays, nan}}, &rounding);
    for (std::int64_t i = 0; i < 64; ++i) EXPECT_TRUE(std::isnan(stays.get(i))) << device.device;
  }
}

TEST(WorkingWeights, RandomRoundingMeansTheNumber) {
  // Between the neighbours 1 and 1 + 2^-7, and below them on the other side of zero.
  constexpr std::int64_t draws = 65536;
  for (const auto& device : devices) {
    for (const double fraction : {0.25, 0.5, 0.9}) {
      for (const double sign : {1.0, -1.0}) {
        TestContext context;
        Buffer from(DType::f32, 1, draws), to(DType::bf16, 1, draws);
        from.fill(sign * (1 + fraction * 0x1p-7));
        device.kernels.write_weights(context, std::array{WeightCopy{to, from, 1, 2}}, &rounding);
        std::int64_t up = 0;
        for (std::int64_t i = 0; i < draws; ++i) {
          const double steps = (sign * to.get(i) - 1) * 0x1p7;
          ASSERT_TRUE(steps == 0 || steps == 1) << device.device << " " << to.get(i);
          up += std::int64_t(steps);
        }
        const double deviation = std::sqrt(fraction * (1 - fraction) / double(draws));
        EXPECT_NEAR(double(up) / double(draws), fraction, 4 * deviation) << device.device;
      }
    }
  }
}

TEST(WorkingWeights, RandomRoundingDependsOnStepSeedParameterAndExpert) {
  TestContext context;
  Buffer from(DType::f32, 1, 256), first(DType::bf16, 1, 256);
  from.randomize(3);
  const auto& k = reference::optimizer_kernels;
  k.write_weights(context, std::array{WeightCopy{first, from, 1, 2}}, &rounding);
  const auto differs = [&](std::uint64_t parameter, std::uint32_t expert, const RandomKey& key) {
    Buffer to(DType::bf16, 1, 256);
    k.write_weights(context, std::array{WeightCopy{to, from, parameter, expert}}, &key);
    return !same_bits(to, first);
  };
  EXPECT_FALSE(differs(1, 2, rounding));
  EXPECT_TRUE(differs(3, 2, rounding));
  EXPECT_TRUE(differs(1, 3, rounding));
  EXPECT_TRUE(differs(1, 2, RandomKey{7, RandomPurpose::rounding, 4, 0}));
  EXPECT_TRUE(differs(1, 2, RandomKey{8, RandomPurpose::rounding, 3, 0}));
}

}  // namespace
}  // namespace flanmoe
