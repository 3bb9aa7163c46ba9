// What a routing did: RouterKernels::measure, the gradient of the balance loss and the claims for the router's bias.
#include "kernels/router_problem.hpp"
#include "kernels/thread_test.hpp"

namespace flanmoe {
namespace {

using test::Buffer;
using Problem = test::RouterProblem;

/// A routed problem with a table of choices that the balance loss counts.
struct Measured : Problem {
  Measured(DType a, std::int64_t T, std::int64_t E, std::int64_t k, std::vector<std::int64_t> first_token = {})
      : Problem(a, T, E, k, std::move(first_token)), balance(DType::i32, G, E, 2), measures(DType::f64, 1, size()) {
    reference::router_kernels.softmax(context, p, log_z, logits);
    reference::router_kernels.top_k(context, choice, p, {});
    reference::router_kernels.count(context, balance, choice, 1, first);
    assign(reference::router_kernels, 2);
  }
  std::int64_t size() const { return RouterMeasures::size(E); }
  const Buffer& measure(const RouterKernels& kernels, bool balanced = true) {
    kernels.measure(context, measures, logits, p, log_z, kept, count, chosen, balanced ? balance.view() : Tensor{},
                    first);
    return measures;
  }
  Buffer balance, measures;
};

TEST(RouterMeasure, AgreesWithHandNumbers) {
  for (const auto& device : test::router_devices()) {
    Measured x(DType::f32, 3, 2, 1, {0, 1, 3});
    x.p.assign({0.25, 0.75, 0.5, 0.5, 1, 0});
    x.logits.assign({2, 4, 1, 1, 3, 7});
    x.log_z.assign({5, 2, 3});
    x.balance.assign({0, 1, 1, 1});
    x.kept.assign({1, 0, 1});
    x.count.assign({1, 1});
    x.chosen.assign({0, 1, 2, 3});
    const Buffer& got = x.measure(device.kernels);
    // Entropy: 5 - 3.5, 2 - 1, 3 - 3. Balance: 0.75 / 1 in the first group, (1.5 + 0.5) / 4 in the second.
    test::expect_close(got, {2.5, 38, 1, 1.25, 2, 4, 1, 1}, 1e-15, device.device);
    EXPECT_EQ(x.measure(device.kernels, false).get(RouterMeasures::balance), 0) << device.device;
  }
}

TEST(RouterMeasure, FastEqualsReferenceOnOddSizes) {
  for (const auto& [T, E, k, first] : {std::tuple{0, 5, 1, std::vector<std::int64_t>{0, 0}},
                                       {1, 1, 1, {0, 1}},
                                       {77, 33, 3, {0, 5, 5, 40, 77}},
                                       {1500, 7, 2, {0, 700, 1499, 1500}},
                                       {9, 300, 4, {0, 9}}}) {
    Measured x(DType::f32, T, E, k, first);
    const std::vector<double> expected = x.measure(reference::router_kernels).values();
    for (const auto& device : test::router_devices()) {
      test::expect_close(x.measure(device.kernels), expected, 1e-13, device.device);
      Buffer expected_dp(DType::f32, x.G, E, 3), dp(DType::f32, x.G, E, 1), expected_claims(DType::f32, 1, E),
          claims(DType::f32, 1, E);
      reference::router_kernels.balance_gradient(x.context, expected_dp, x.balance, first, 0.3, 11);
      device.kernels.balance_gradient(x.context, dp, x.balance, first, 0.3, 11);
      test::expect_close(dp, expected_dp, 0, device.device);
      for (Buffer* c : {&expected_claims, &claims}) c->fill(5);
      reference::router_kernels.add_claims(x.context, expected_claims, x.chosen);
      device.kernels.add_claims(x.context, claims, x.chosen);
      EXPECT_TRUE(same_bits(claims, expected_claims)) << device.device;
      device.kernels.balance_gradient(x.context, dp, {}, first, 0.3, 11);
      test::expect_close(dp, std::vector<double>(std::size_t(dp.size()), 0.0), 0, device.device);
    }
  }
}

/// One group of the step's three: the loss by p is the measure times the weight over the groups of the step.
TEST(RouterMeasure, BalanceGradientIsThatOfTheMeasure) {
  Measured x(DType::f64, 6, 3, 1, {0, 4, 6});
  Buffer dp(DType::f64, x.G, x.E);
  reference::router_kernels.balance_gradient(x.context, dp, x.balance, x.first, 0.7, 3);
  const auto loss = [&] { return 0.7 / 3 * x.measure(reference::router_kernels).get(RouterMeasures::balance); };
  const std::vector<double> numeric = test::central_difference(loss, x.p);
  for (std::int64_t t = 0; t < x.T; ++t) {
    for (std::int64_t e = 0; e < x.E; ++e) {
      EXPECT_NEAR(numeric[std::size_t(t * x.E + e)], dp.get((t < 4 ? 0 : 1) * x.E + e), 1e-9);
    }
  }
}

TEST(RouterMeasure, DoesNotDependOnThreads) {
  test::expect_same_bits_on_threads([](std::vector<Buffer>& out) {
    Measured x(DType::f32, 3000, 24, 2, {0, 1000, 3000});
    x.measure(cpu::router_kernels);
    out.push_back(std::move(x.measures));
  });
}

TEST(RouterMeasure, WrongOperandsAreRefused) {
  Measured x(DType::f32, 4, 3, 1);
  Buffer small(DType::f64, 1, x.size() - 1);
  for (const auto& device : test::router_devices()) {
    EXPECT_THROW(
        device.kernels.measure(x.context, small, x.logits, x.p, x.log_z, x.kept, x.count, x.chosen, x.balance, x.first),
        LogicError);
    EXPECT_THROW(
        device.kernels.balance_gradient(x.context, x.dp, x.balance, std::vector<std::int64_t>{0, 1, 2, 4}, 1, 1),
        LogicError);
  }
}

}  // namespace
}  // namespace flanmoe
