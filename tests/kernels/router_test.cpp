#include "kernels/router.hpp"

#include "kernels/router_problem.hpp"
#include "kernels/thread_test.hpp"

namespace flanmoe {
namespace {

using test::Buffer;
using test::TestContext;
using Problem = test::RouterProblem;

TEST(Router, TopKAgreesWithHandNumbers) {
  for (const auto& device : test::router_devices()) {
    for (const bool renormalize : {false, true}) {
      Problem x(DType::f32, 2, 3, 2);
      x.logits.assign({std::log(2.0), std::log(5.0), std::log(3.0), 0, 0, 0});
      x.top_k(device.kernels, renormalize);
      test::expect_close(x.p, {0.2, 0.5, 0.3, 1. / 3, 1. / 3, 1. / 3}, 2e-7, device.device);
      test::expect_close(x.log_z, {std::log(10.0), std::log(3.0)}, 2e-7, device.device);
      test::expect_close(x.choice, {1, 2, 0, 1}, 0, device.device);
      if (renormalize) {
        test::expect_close(x.weight, {0.625, 0.375, 0.5, 0.5}, 2e-7, device.device);
      } else {
        test::expect_close(x.weight, {0.5, 0.3, 1. / 3, 1. / 3}, 2e-7, device.device);
      }
    }
  }
}

TEST(Router, TiesGoToTheLowerExpert) {
  for (const auto& device : test::router_devices()) {
    Problem x(DType::f32, 3, 5, 3);
    x.logits.assign({1, 2, 1, 2, 1,  //
                     7, 7, 7, 7, 7,  //
                     0, 0, 0, 0, 9});
    x.top_k(device.kernels, false);
    test::expect_close(x.choice, {1, 3, 0, 0, 1, 2, 4, 0, 1}, 0, device.device);
  }
}

TEST(Router, ChoosesAllExpertsInOrderWhenKIsE) {
  for (const auto& device : test::router_devices()) {
    Problem x(DType::f32, 40, 13, 13);
    x.top_k(device.kernels, true);
    for (std::int64_t t = 0; t < x.T; ++t) {
      double sum = 0;
      std::vector<bool> seen(13, false);
      for (std::int64_t j = 0; j < 13; ++j) {
        sum += x.weight.get(t * 13 + j);
        ASSERT_GE(x.weight.get(t * 13 + std::max<std::int64_t>(j - 1, 0)), x.weight.get(t * 13 + j));
        seen[std::size_t(x.choice.get(t * 13 + j))] = true;
      }
      EXPECT_NEAR(sum, 1, 1e-6);
      EXPECT_EQ(std::count(seen.begin(), seen.end(), true), 13) << device.device;
    }
  }
}

TEST(Router, SoftmaxHoldsAtLargeLogits) {
  for (const auto& device : test::router_devices()) {
    Problem x(DType::f32, 1, 3, 1);
    x.logits.assign({1e4, 1e4 - 1, -1e4});
    x.top_k(device.kernels, false);
    test::expect_close(x.p, {1 / (1 + std::exp(-1.0)), 1 / (1 + std::exp(1.0)), 0}, 2e-7, device.device);
    test::expect_close(x.log_z, {1e4 + std::log1p(std::exp(-1.0))}, 0, device.device);
  }
}

TEST(Router, NotANumberStillChoosesDistinctExperts) {
  for (const auto& device : test::router_devices()) {
    Problem x(DType::f32, 2, 4, 3);
    x.logits.fill(std::numeric_limits<double>::quiet_NaN());
    x.logits.set(5, 1.0);
    x.top_k(device.kernels, false);
    x.assign(device.kernels, 1, SlotPriority::probability);
    for (std::int64_t t = 0; t < 2; ++t) {
      std::vector<int> times(4, 0);
      for (std::int64_t j = 0; j < 3; ++j) ++times.at(std::size_t(x.choice.get(t * 3 + j)));
      EXPECT_LE(*std::max_element(times.begin(), times.end()), 1) << device.device;
    }
  }
}

TEST(Router, AllFirstChoicesClaimBeforeAnySecondChoice) {
  for (const auto& device : test::router_devices()) {
    Problem x(DType::f32, 3, 3, 2);
    // Token 0 has expert 1 as its second choice, tokens 1 and 2 as their first: with 2 slots the second choice loses.
    x.choose({0, 1, 1, 0, 1, 2});
    x.assign(device.kernels, 2);
    test::expect_close(x.kept, {1, 0, 1, 1, 1, 1}, 0, device.device);
    test::expect_close(x.chosen, {2, 3, 1}, 0, device.device);
    // Expert 0: tokens 0 and 1; expert 1: tokens 1 and 2; expert 2: token 2.
    test::expect_close(x.slot, {0, -1, 2, 1, 3, 4}, 0, device.device);
    test::expect_close(x.token, {0, 1, 1, 2, 2, -1}, 0, device.device);
    test::expect_close(x.count, {2, 2, 1}, 0, device.device);
    EXPECT_EQ(x.rows, 5) << device.device;
  }
}

TEST(Router, ClaimsThatOverflowCountAsClaims) {
  for (const auto& device : test::router_devices()) {
    // Everybody wants expert 2 first, with one slot; nobody wants expert 1.
    Problem x(DType::f32, 4, 3, 1);
    x.choose({2, 2, 2, 2});
    x.assign(device.kernels, 1);
    test::expect_close(x.kept, {1, 0, 0, 0}, 0, device.device);
    test::expect_close(x.chosen, {0, 0, 4}, 0, device.device);
    test::expect_close(x.count, {0, 0, 1}, 0, device.device);
    test::expect_close(x.token, {0, -1, -1, -1}, 0, device.device);
    x.assign(device.kernels, 0);
    test::expect_close(x.kept, {0, 0, 0, 0}, 0, device.device);
    EXPECT_EQ(x.rows, 0) << device.device;
    x.assign(device.kernels, test::kDropless);
    test::expect_close(x.kept, {1, 1, 1, 1}, 0, device.device);
    test::expect_close(x.slot, {0, 1, 2, 3}, 0, device.device);
  }
}

TEST(Router, ProbabilityPriorityServesTheSurestTokensFirst) {
  for (const auto& device : test::router_devices()) {
    Problem x(DType::f32, 4, 2, 1);
    x.choose({0, 0, 0, 0}, {0.5, 0.7, 0.9, 0.7});
    x.assign(device.kernels, 2, SlotPriority::probability);
    test::expect_close(x.kept, {0, 1, 1, 0}, 0, device.device);  // the tie at 0.7 goes to the earlier token
    // Rows stay in token order, whatever the order of the claims.
    test::expect_close(x.token, {1, 2, -1, -1}, 0, device.device);
    test::expect_close(x.slot, {-1, 0, 1, -1}, 0, device.device);
  }
}

TEST(Router, PriorityOfSecondChoicesFollowsTheFirstProbability) {
  for (const auto& device : test::router_devices()) {
    Problem x(DType::f32, 2, 3, 2);
    x.choose({0, 2, 1, 2}, {0.5, 0.6});
    x.assign(device.kernels, 1, SlotPriority::probability);
    test::expect_close(x.kept, {1, 0, 1, 1}, 0, device.device);
  }
}

TEST(Router, RenormalizedWeightsDoNotChangeThePriority) {
  for (const auto& device : test::router_devices()) {
    // Token 1 is surer of its first choice (0.6 against 0.5), though renormalised over two its weight is the smaller
    // one.
    Problem x(DType::f32, 2, 3, 2);
    x.logits.assign({std::log(0.50), std::log(0.25), std::log(0.25), std::log(0.60), std::log(0.39), std::log(0.01)});
    x.top_k(device.kernels, true);
    ASSERT_GT(x.weight.get(0), x.weight.get(2)) << device.device;
    x.assign(device.kernels, 1, SlotPriority::probability);
    EXPECT_EQ(x.kept.get(0), 0) << device.device;
    EXPECT_EQ(x.kept.get(2), 1) << device.device;
  }
}

TEST(Router, GroupsCompeteAmongThemselvesOnly) {
  for (const auto& device : test::router_devices()) {
    for (const auto priority : {SlotPriority::token_order, SlotPriority::probability}) {
      Problem x(DType::f32, 5, 2, 1, {0, 3, 3, 5});
      x.choose({0, 0, 1, 0, 0}, {0.5, 0.5, 0.5, 0.5, 0.5});
      x.assign(device.kernels, 1, priority);
      test::expect_close(x.kept, {1, 0, 1, 1, 0}, 0, device.device);
      test::expect_close(x.chosen, {2, 1, 0, 0, 2, 0}, 0, device.device);
      test::expect_close(x.count, {2, 1}, 0, device.device);
    }
  }
}

TEST(Router, AcceptsNoTokens) {
  for (const auto& device : test::router_devices()) {
    Problem x(DType::f32, 0, 4, 2);
    x.top_k(device.kernels, true);
    x.assign(device.kernels, 3, SlotPriority::probability);
    x.backward(device.kernels, 1.0, true);
    test::expect_close(x.chosen, {0, 0, 0, 0}, 0, device.device);
    test::expect_close(x.count, {0, 0, 0, 0}, 0, device.device);
    EXPECT_EQ(x.rows, 0) << device.device;
  }
}

TEST(Router, BackwardIsTheGradientOfTheForward) {
  for (const bool renormalize : {false, true}) {
    for (const std::int64_t k : {1, 2, 5}) {
      Problem x(DType::f64, 6, 5, k, {0, 2, 2, 6});
      const double z_scale = 0.3;
      x.top_k(reference::router_kernels, renormalize);
      for (std::int64_t t = 0; t < 6; t += 3) x.dweight.set(t * k, 0);  // a dropped first choice
      x.backward(reference::router_kernels, z_scale, renormalize);
      const Buffer& fixed = x.choice;
      const auto loss = [&] {
        Problem y(DType::f64, 6, 5, k);
        y.logits.copy_from(x.logits);
        y.top_k(reference::router_kernels, renormalize);
        EXPECT_TRUE(same_bits(y.choice, fixed)) << "a choice changed: the loss has a step here";
        double sum = test::weighted_sum(y.weight, x.dweight);
        for (std::int64_t t = 0; t < 6; ++t) {
          const std::int64_t g = t < 2 ? 0 : 2;
          for (std::int64_t e = 0; e < 5; ++e) sum += x.dp.get(g * 5 + e) * y.p.get(t * 5 + e);
          sum += z_scale * y.log_z.get(t) * y.log_z.get(t);
        }
        return sum;
      };
      test::expect_gradient(x.dlogits, loss, x.logits, "dlogits");
    }
  }
}

void compare_with_reference(const test::Implementation<RouterKernels>& device, std::int64_t T, std::int64_t E,
                            std::int64_t k, bool renormalize) {
  const std::vector<std::int64_t> first = {0, T / 3, T / 3, T};
  Problem r(DType::f32, T, E, k, first), c(DType::f32, T, E, k, first);
  // One very hot expert, and one that nobody wants.
  for (Problem* x : {&r, &c}) {
    for (std::int64_t t = 0; t < T && E > 2; ++t) {
      x->logits.set(t * E + 1, 3.0 + double(t % 7));
      x->logits.set(t * E, -50.0);
    }
  }
  r.top_k(reference::router_kernels, renormalize);
  c.top_k(device.kernels, renormalize);
  // The reference adds E terms in a row, one fp32 rounding each.
  const double extra = 5e-7 + double(E) * 0x1p-25;
  test::expect_close(c.p, r.p, extra, device.device + " p");
  test::expect_close(c.log_z, r.log_z, extra, device.device + " log_z");
  test::expect_close(c.weight, r.weight, extra, device.device + " weight");
  EXPECT_TRUE(same_bits(c.choice, r.choice)) << device.device;
  c.p.copy_from(r.p);
  for (const auto priority : {SlotPriority::token_order, SlotPriority::probability}) {
    for (const std::int64_t slots : {std::int64_t{3}, test::kDropless}) {
      r.assign(reference::router_kernels, slots, priority);
      c.assign(device.kernels, slots, priority);
      EXPECT_TRUE(same_bits(c.kept, r.kept)) << device.device;
      EXPECT_TRUE(same_bits(c.chosen, r.chosen)) << device.device;
      EXPECT_TRUE(same_bits(c.slot, r.slot)) << device.device;
      EXPECT_TRUE(same_bits(c.token, r.token)) << device.device;
      EXPECT_TRUE(same_bits(c.count, r.count)) << device.device;
      EXPECT_EQ(c.rows, r.rows) << device.device;
    }
  }
  Buffer counted(DType::i32, 3, E), expected(DType::i32, 3, E);
  reference::router_kernels.count(r.context, expected, r.choice, (k + 1) / 2, first);
  device.kernels.count(c.context, counted, c.choice, (k + 1) / 2, first);
  EXPECT_TRUE(same_bits(counted, expected)) << device.device;
  r.backward(reference::router_kernels, 0.01, renormalize);
  c.backward(device.kernels, 0.01, renormalize);
  test::expect_close(c.dlogits, r.dlogits, 4 * extra, device.device + " dlogits");
}

TEST(Router, FastEqualsReferenceOnOddSizes) {
  for (const auto& device : test::fast_devices_of(cpu::router_kernels, test::cuda_router)) {
    for (const auto& [T, E, k] :
         {std::tuple{1, 1, 1}, {3, 2, 2}, {37, 8, 2}, {129, 67, 3}, {65, 64, 1}, {70, 300, 4}, {900, 5, 3}}) {
      for (const bool renormalize : {false, true}) compare_with_reference(device, T, E, k, renormalize);
    }
  }
}

TEST(Router, BitsDoNotDependOnThreads) {
  test::expect_same_bits_on_threads([](std::vector<Buffer>& out) {
    Problem x(DType::f32, 1000, 37, 2, {0, 300, 301, 1000});
    x.top_k(cpu::router_kernels, true);
    x.assign(cpu::router_kernels, 20, SlotPriority::probability);
    x.backward(cpu::router_kernels, 0.1, true);
    for (Buffer* result : {&x.p, &x.weight, &x.kept, &x.chosen, &x.slot, &x.dlogits}) out.push_back(std::move(*result));
  });
}

TEST(Router, ScratchIsAsAnnounced) {
  for (const auto& device : test::router_devices()) {
    Problem x(DType::f32, 3000, 4, 1);
    x.top_k(device.kernels, false);
    TestContext small(std::int64_t(device.kernels.scratch_bytes(3000, 4)));
    const std::vector<std::int64_t> capacity = {100};
    device.kernels.admit(small, x.kept, x.weight, {});
    device.kernels.assign(small, x.kept, x.chosen, x.choice, x.p, x.first, capacity, SlotPriority::probability);
    Buffer kept(DType::i32, 3000, 4), choice(DType::i32, 3000, 4);
    device.kernels.expert_choice(small, kept, x.chosen, choice, x.p, x.first, capacity);
  }
}

}  // namespace
}  // namespace flanmoe
