// Who is admitted, biased, forced, or chosen by experts; jitter.
#include "kernels/router.hpp"
#include "kernels/router_problem.hpp"

namespace flanmoe {
namespace {

using test::Buffer;
using Problem = test::RouterProblem;

TEST(Router, BiasChangesChoicesButNotWeights) {
  for (const auto& device : test::router_devices()) {
    Problem x(DType::f32, 2, 3, 2);
    x.logits.assign({std::log(0.5), std::log(0.3), std::log(0.2), std::log(0.5), std::log(0.3), std::log(0.2)});
    Buffer bias(DType::f32, 1, 3);
    bias.assign({-0.25, 0.0, 0.125});  // scores 0.25, 0.3, 0.325
    x.top_k(device.kernels, false, bias);
    test::expect_close(x.choice, {2, 1, 2, 1}, 0, device.device);
    test::expect_close(x.weight, {0.2, 0.3, 0.2, 0.3}, 2e-7, device.device);
    bias.assign({0.0, 0.0, 0.0});
    x.top_k(device.kernels, false, bias);
    test::expect_close(x.choice, {0, 1, 0, 1}, 0, device.device);
  }
}

TEST(Router, ChosenExpertsOfNoProbabilityShareEquallyAndWithoutGradient) {
  for (const auto& device : test::router_devices()) {
    for (const double p : {0.0, 1e-39}) {
      Problem x(DType::f32, 1, 3, 2);
      x.p.assign({1, 0, p});
      x.choice.assign({1, 2});
      x.log_z.fill(0);
      x.dp.fill(0);
      x.dweight.assign({5, -3});
      device.kernels.weigh(x.context, x.weight, x.p, x.choice, true);
      test::expect_close(x.weight, {0.5, 0.5}, 0, device.device);
      x.backward(device.kernels, 0.0, true);
      test::expect_close(x.dlogits, {0, 0, 0}, 0, device.device);
    }
  }
}

TEST(Router, ForcedChoicesLoadAllExpertsEvenly) {
  const std::vector<std::int64_t> row = {0, 0, 0, 7, 7};
  const std::vector<std::int32_t> position = {0, 1, 2, 0, 1};
  for (const auto& device : test::router_devices()) {
    Problem x(DType::f32, 5, 3, 2);
    device.kernels.spread(x.context, x.choice, 3, row, position);
    test::expect_close(x.choice, {0, 1, 2, 0, 1, 2, 1, 2, 0, 1}, 0, device.device);
  }
}

/// Philox words are drawn the same way by every device; what they decide is checked by counting and by rule.
SecondChoices second(SecondPolicy policy, double threshold, std::int64_t tokens, std::vector<std::int64_t>& row_T,
                     std::vector<std::int32_t>& position_T) {
  for (std::int64_t t = 0; t < tokens; ++t) {
    row_T.push_back(3 + t / 100);
    position_T.push_back(std::int32_t(t % 100));
  }
  return {policy, threshold, {.seed = 11, .purpose = RandomPurpose::router, .step = 4, .layer = 2}, row_T, position_T};
}

TEST(Router, SecondPoliciesAdmitByHandNumbers) {
  for (const auto& device : test::router_devices()) {
    std::vector<std::int64_t> row_T;
    std::vector<std::int32_t> position_T;
    Problem x(DType::f32, 3, 4, 3);
    x.weight.assign({0.1, 0.25, 0.2, 0.6, 0.26, 0.1, 0.5, 0.5, 0.0});
    SecondChoices choices = second(SecondPolicy::all, 0.25, 3, row_T, position_T);
    device.kernels.admit(x.context, x.kept, x.weight, choices);
    test::expect_close(x.kept, {1, 1, 1, 1, 1, 1, 1, 1, 1}, 0, device.device);
    choices.policy = SecondPolicy::none;
    device.kernels.admit(x.context, x.kept, x.weight, choices);
    test::expect_close(x.kept, {1, 0, 0, 1, 0, 0, 1, 0, 0}, 0, device.device);
    // The first choice always; of the others those strictly above 0.25.
    choices.policy = SecondPolicy::threshold;
    device.kernels.admit(x.context, x.kept, x.weight, choices);
    test::expect_close(x.kept, {1, 0, 0, 1, 1, 0, 1, 1, 0}, 0, device.device);
    // By chance: certain from the threshold on, impossible at 0.
    choices.policy = SecondPolicy::random;
    device.kernels.admit(x.context, x.kept, x.weight, choices);
    for (const std::int64_t certain : {0, 1, 3, 4, 6, 7}) EXPECT_EQ(x.kept.get(certain), 1) << device.device << certain;
    EXPECT_EQ(x.kept.get(8), 0) << device.device;
  }
}

TEST(Router, RandomPolicyAdmitsAsOftenAsTheWeightSaysAndAnywhereTheSame) {
  constexpr std::int64_t T = 20000;
  std::vector<std::int64_t> row_T;
  std::vector<std::int32_t> position_T;
  const SecondChoices choices = second(SecondPolicy::random, 0.2, T, row_T, position_T);
  std::vector<std::vector<double>> kept;
  for (const auto& device : test::router_devices()) {
    Problem x(DType::f32, T, 4, 2);
    for (std::int64_t t = 0; t < T; ++t) {
      x.weight.set(2 * t, 0.95);
      x.weight.set(2 * t + 1, 0.05);
    }
    device.kernels.admit(x.context, x.kept, x.weight, choices);
    double seconds = 0;
    for (std::int64_t t = 0; t < T; ++t) seconds += x.kept.get(2 * t + 1);
    // 0.05 / 0.2 of 20000, standard deviation 61.
    EXPECT_NEAR(seconds, 5000, 300) << device.device;
    kept.push_back(x.kept.values());
    // The second half alone, as another rank would hold it, draws the same.
    Problem half(DType::f32, T / 2, 4, 2);
    half.weight.fill(0.05);
    SecondChoices later = choices;
    later.row_T = choices.row_T.subspan(T / 2);
    later.position_T = choices.position_T.subspan(T / 2);
    device.kernels.admit(half.context, half.kept, half.weight, later);
    for (std::int64_t t = 0; t < T / 2; ++t) ASSERT_EQ(half.kept.get(2 * t + 1), x.kept.get(T + 2 * t + 1)) << t;
  }
  for (const auto& other : kept) EXPECT_EQ(other, kept[0]);
}

TEST(Router, ChoicesThatAreNotAdmittedClaimNothing) {
  for (const auto& device : test::router_devices()) {
    // Tokens 0 and 1 want expert 0 second, token 2 first; one slot. Token 0's second choice is not admitted, so that
    // token 2 (first choices come first) gets the slot and token 1 overflows.
    Problem x(DType::f32, 3, 3, 2);
    x.choose({1, 0, 2, 0, 0, 1});
    x.kept.assign({1, 0, 1, 1, 1, 0});
    x.assign_admitted(device.kernels, 1);
    test::expect_close(x.kept, {1, 0, 1, 0, 1, 0}, 0, device.device);
    test::expect_close(x.chosen, {2, 1, 1}, 0, device.device);
    test::expect_close(x.slot, {1, -1, 2, -1, 0, -1}, 0, device.device);
    EXPECT_EQ(x.rows, 3) << device.device;
  }
}

TEST(Router, CountsTheFirstColumnsOfEveryGroup) {
  for (const auto& device : test::router_devices()) {
    Problem x(DType::f32, 3, 3, 2, {0, 2, 2, 3});
    x.choose({0, 1, 0, 2, 2, 1});
    device.kernels.count(x.context, x.chosen, x.choice, 1, x.first);
    test::expect_close(x.chosen, {2, 0, 0, 0, 0, 0, 0, 0, 1}, 0, device.device);
    device.kernels.count(x.context, x.chosen, x.choice, 2, x.first);
    test::expect_close(x.chosen, {2, 1, 1, 0, 0, 0, 0, 1, 1}, 0, device.device);
  }
}

TEST(ExpertChoice, TakesTheMostProbableTokensTiesToTheEarlier) {
  for (const auto& device : test::router_devices()) {
    Problem x(DType::f32, 4, 3, 3);
    x.p.assign({0.5, 0.3, 0.2,  //
                0.6, 0.3, 0.1,  //
                0.5, 0.3, 0.2,  //
                0.1, 0.2, 0.7});
    x.expert_choice(device.kernels, {2});
    // Expert 0: tokens 1 and, of the tie at 0.5, 0. Expert 1: the first two of three ties. Expert 2: tokens 3 and 0.
    test::expect_close(x.kept, {1, 1, 1, 1, 1, 0, 0, 0, 0, 0, 0, 1}, 0, device.device);
    test::expect_close(x.chosen, {2, 2, 2}, 0, device.device);
    test::expect_close(x.choice, {0, 1, 2, 0, 1, 2, 0, 1, 2, 0, 1, 2}, 0, device.device);
    // Rows by expert, then by token; token 2 has none.
    test::expect_close(x.slot, {0, 2, 4, 1, 3, -1, -1, -1, -1, -1, -1, 5}, 0, device.device);
    test::expect_close(x.count, {2, 2, 2}, 0, device.device);
    EXPECT_EQ(x.rows, 6) << device.device;
    for (const auto& [row, token] : {std::pair{0, 0}, {1, 1}, {2, 0}, {3, 1}, {4, 0}, {5, 3}})
      EXPECT_EQ(x.token.get(row), token) << device.device;
    EXPECT_EQ(x.token.get(6), -1) << device.device;
  }
}

TEST(ExpertChoice, TakesAllTokensOfASmallGroupAndOnlyOfItsOwn) {
  for (const auto& device : test::router_devices()) {
    Problem x(DType::f32, 4, 2, 2, {0, 1, 1, 4});
    x.p.assign({0.9, 0.1, 0.5, 0.5, 0.4, 0.6, 0.3, 0.7});
    x.expert_choice(device.kernels, {3, 3, 1});
    test::expect_close(x.kept, {1, 1, 1, 0, 0, 0, 0, 1}, 0, device.device);
    test::expect_close(x.chosen, {1, 1, 0, 0, 1, 1}, 0, device.device);
    EXPECT_EQ(x.rows, 4) << device.device;
  }
}

TEST(ExpertChoice, OneTokenEveryExpertAndNoToken) {
  for (const auto& device : test::router_devices()) {
    Problem one(DType::f32, 1, 5, 5);
    one.top_k(device.kernels, false);
    one.expert_choice(device.kernels, {1});
    test::expect_close(one.kept, {1, 1, 1, 1, 1}, 0, device.device);
    Problem none(DType::f32, 0, 5, 5);
    none.expert_choice(device.kernels, {4});
    EXPECT_EQ(none.rows, 0) << device.device;
  }
}

TEST(ExpertChoice, BackwardIsTheGradientOfWeightsAndZLoss) {
  Problem x(DType::f64, 5, 4, 4, {0, 2, 5});
  x.softmax_in_double();
  x.expert_choice(reference::router_kernels, {1, 2});
  x.dp.fill(0);
  for (std::int64_t i = 0; i < x.T * x.E; ++i) {
    if (x.kept.get(i) == 0) x.dweight.set(i, 0);
  }
  x.backward(reference::router_kernels, 0.3, false);
  const auto loss = [&] {
    Problem y(DType::f64, 5, 4, 4);
    y.logits.copy_from(x.logits);
    y.softmax_in_double();
    double sum = 0;  // the assignment stays as it was
    for (std::int64_t i = 0; i < x.T * x.E; ++i) sum += x.dweight.get(i) * y.p.get(i);
    for (std::int64_t t = 0; t < x.T; ++t) sum += 0.3 * y.log_z.get(t) * y.log_z.get(t);
    return sum;
  };
  test::expect_gradient(x.dlogits, loss, x.logits, "dlogits");
}

TEST(ExpertChoice, FastEqualsReferenceOnOddSizes) {
  for (const auto& [T, E] : {std::pair{1, 1}, {3, 2}, {37, 8}, {129, 67}, {500, 16}}) {
    const std::vector<std::int64_t> first = {0, T / 3, T / 3, T};
    for (const auto& device : test::fast_devices_of(cpu::router_kernels, test::cuda_router)) {
      Problem r(DType::f32, T, E, E, first), c(DType::f32, T, E, E, first);
      for (Problem* x : {&r, &c}) {
        // Few different logits, so that there are many ties; expert 0 is wanted by nobody, but has to take its share.
        for (std::int64_t i = 0; i < T * E; ++i) x->logits.set(i, i % E == 0 ? -40.0 : double((i * 7919) % 5));
        x->top_k(reference::router_kernels, false);
      }
      for (const std::vector<std::int64_t>& capacity :
           {std::vector<std::int64_t>{1, 1, 1}, {3, 2, 7}, {T, T, T / 2}, {0, 1, 0}}) {
        r.expert_choice(reference::router_kernels, capacity);
        c.expert_choice(device.kernels, capacity);
        EXPECT_TRUE(same_bits(c.kept, r.kept)) << device.device;
        EXPECT_TRUE(same_bits(c.chosen, r.chosen)) << device.device;
        EXPECT_TRUE(same_bits(c.choice, r.choice)) << device.device;
        EXPECT_TRUE(same_bits(c.slot, r.slot)) << device.device;
        EXPECT_TRUE(same_bits(c.token, r.token)) << device.device;
        EXPECT_EQ(c.rows, r.rows) << device.device;
      }
    }
  }
}

TEST(Jitter, MultipliesByFactorsThatDependOnThePlaceOnly) {
  constexpr std::int64_t T = 40, D = 1500;
  std::vector<std::int64_t> row_T;
  std::vector<std::int32_t> position_T;
  second(SecondPolicy::all, 1, T, row_T, position_T);
  const Jitter jitter{
      0.25, {.seed = 3, .purpose = RandomPurpose::router_jitter, .step = 9, .layer = 5}, row_T, position_T};
  std::vector<std::vector<double>> results;
  for (const auto& device : test::router_devices()) {
    Problem context(DType::f32, 1, 1, 1);
    Buffer x(DType::f32, T, D, 3), y(DType::f32, T, D, 1);
    x.fill(2.0);
    device.kernels.jitter(context.context, y, x, jitter);
    double sum = 0, low = 9, high = 0;
    for (const double v : y.values()) {
      sum += v;
      low = std::min(low, v);
      high = std::max(high, v);
    }
    EXPECT_GE(low, 1.5 - 1e-6);
    EXPECT_LE(high, 2.5 + 1e-6);
    EXPECT_LT(low, 1.501);
    EXPECT_GT(high, 2.499);
    EXPECT_NEAR(sum / double(T * D), 2.0, 0.01) << device.device;
    // Word c of the stream, by definition.
    const auto words = jitter.key.words(std::uint64_t(row_T[7]), std::uint32_t(position_T[7]), 1203 / 4);
    EXPECT_NEAR(y.get(7 * D + 1203), 2 * (0.75 + 0.5 * double(words[1203 % 4]) * 0x1p-32), 1e-6) << device.device;
    // bf16 in, fp32 out; and in place.
    Buffer half(DType::bf16, T, D);
    half.fill(2.0);
    Buffer z(DType::f32, T, D);
    device.kernels.jitter(context.context, z, half, jitter);
    EXPECT_EQ(z.values(), y.values()) << device.device;
    z.fill(2.0);
    device.kernels.jitter(context.context, z, z, jitter);
    EXPECT_EQ(z.values(), y.values()) << device.device;
    results.push_back(y.values());
  }
  for (const auto& other : results) {
    for (std::size_t i = 0; i < results[0].size(); ++i) ASSERT_NEAR(results[0][i], other[i], 1e-6);
  }
}

}  // namespace
}  // namespace flanmoe
