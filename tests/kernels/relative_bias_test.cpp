#include "kernels/relative_bias.hpp"

#include "kernels/cuda_tables.hpp"
#include "kernels/kernel_test.hpp"

namespace flanmoe::test {
namespace {

const auto devices = devices_of(reference::relative_bias_kernels, cpu::relative_bias_kernels, cuda_relative_bias);

TEST(RelativeBias, BucketsAreThoseOfT5) {
  // 32 buckets up to distance 128. Bidirectional: 16 for each sign, 8 of them exact; bucket 8 + floor(2 log2(n/8)).
  const auto both = [](std::int64_t n) { return relative_bucket(n, true, 32, 128); };
  EXPECT_EQ(both(0), 0);
  EXPECT_EQ(both(7), 7);
  EXPECT_EQ(both(8), 8);
  EXPECT_EQ(both(11), 8);
  EXPECT_EQ(both(12), 9);
  EXPECT_EQ(both(16), 10);
  EXPECT_EQ(both(64), 14);
  EXPECT_EQ(both(127), 15);
  EXPECT_EQ(both(5000), 15);
  EXPECT_EQ(both(-1), 17);
  EXPECT_EQ(both(-8), 24);
  EXPECT_EQ(both(-5000), 31);
  // Causal: 16 exact, then 16 + floor(16 ln(n/16)/ln 8); keys after the query share bucket 0.
  const auto causal = [](std::int64_t n) { return relative_bucket(n, false, 32, 128); };
  EXPECT_EQ(causal(-3), 0);
  EXPECT_EQ(causal(15), 15);
  EXPECT_EQ(causal(16), 16);
  EXPECT_EQ(causal(32), 21);
  EXPECT_EQ(causal(127), 31);
  EXPECT_EQ(causal(100000), 31);
}

TEST(RelativeBias, BucketsNeverDecreaseWithDistance) {
  for (const bool bidirectional : {true, false}) {
    for (std::int64_t n = 0; n < 300; ++n) {
      EXPECT_LE(relative_bucket(n, bidirectional, 32, 128), relative_bucket(n + 1, bidirectional, 32, 128)) << n;
    }
  }
}

TEST(RelativeBias, ExpandPutsTheBucketOfEachOffset) {
  for (const auto& device : devices) {
    TestContext context;
    Buffer table(DType::f32, 4, 2), bias(DType::f32, 2, 5, 1);
    table.assign({0, 10, 1, 11, 2, 12, 3, 13});
    device.kernels.expand(context, bias, table, true, 8);  // offsets -2..2; one exact bucket for each sign
    EXPECT_EQ(bias.values(), (std::vector<double>{3, 3, 0, 1, 1, 13, 13, 10, 11, 11})) << device.device;
    device.kernels.expand(context, bias, table, false, 8);  // two exact buckets, keys after the query in bucket 0
    EXPECT_EQ(bias.values(), (std::vector<double>{0, 0, 0, 1, 2, 10, 10, 10, 11, 12})) << device.device;
  }
}

TEST(RelativeBias, FastEqualsReference) {
  for (const bool bidirectional : {true, false}) {
    for (const auto& device : fast_devices_of(cpu::relative_bias_kernels, cuda_relative_bias)) {
      TestContext context;
      Buffer table(DType::f32, 32, 3, 1), bias(DType::f32, 3, 401, 2), expected(DType::f32, 3, 401);
      table.randomize(1);
      device.kernels.expand(context, bias, table, bidirectional, 128);
      reference::relative_bias_kernels.expand(context, expected, table, bidirectional, 128);
      EXPECT_TRUE(same_bits(bias, expected)) << device.device;

      Buffer got(DType::f32, 32, 3, 1), want(DType::f32, 32, 3);
      got.randomize(2);
      want.randomize(2);
      device.kernels.gradient(context, got, bias, bidirectional, 128);
      reference::relative_bias_kernels.gradient(context, want, bias, bidirectional, 128);
      expect_close(got, want, 1e-5, device.device);
    }
  }
}

TEST(RelativeBias, GradientAgreesWithCentralDifferences) {
  for (const bool bidirectional : {true, false}) {
    TestContext context;
    Buffer table(DType::f64, 8, 2), bias(DType::f64, 2, 21), dbias(DType::f64, 2, 21), dtable(DType::f64, 8, 2);
    table.randomize(3);
    dbias.randomize(4);
    dtable.fill(0);
    reference::relative_bias_kernels.gradient(context, dtable, dbias, bidirectional, 6);
    const auto loss = [&] {
      reference::relative_bias_kernels.expand(context, bias, table, bidirectional, 6);
      return weighted_sum(bias, dbias);
    };
    expect_gradient(dtable, loss, table);
  }
}

TEST(RelativeBias, TablesThatDoNotFitAreRefused) {
  for (const auto& device : devices) {
    TestContext context;
    Buffer table(DType::f32, 32, 2), even(DType::f32, 2, 4), heads(DType::f32, 3, 5);
    EXPECT_THROW(device.kernels.expand(context, even, table, true, 128), LogicError) << device.device;
    EXPECT_THROW(device.kernels.expand(context, heads, table, true, 128), LogicError) << device.device;
  }
}

}  // namespace
}  // namespace flanmoe::test
