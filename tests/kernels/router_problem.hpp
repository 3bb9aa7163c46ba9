// Operands of the routing operations, for their tests.
#pragma once

#include <limits>

#include "kernels/cuda_tables.hpp"
#include "kernels/kernel_test.hpp"
#include "kernels/router.hpp"

namespace flanmoe::test {

inline constexpr std::int64_t kDropless = std::numeric_limits<std::int64_t>::max();

struct RouterProblem {
  RouterProblem(DType a, std::int64_t T, std::int64_t E, std::int64_t k, std::vector<std::int64_t> first_token = {})
      : T(T),
        E(E),
        k(k),
        first(first_token.empty() ? std::vector<std::int64_t>{0, T} : std::move(first_token)),
        G(std::int64_t(first.size()) - 1),
        logits(a, T, E, 1),
        p(a, T, E, 2),
        log_z(a, T, 1),
        weight(a, T, k),
        dweight(a, T, k),
        dp(a, G, E),
        dlogits(a, T, E, 3),
        choice(DType::i32, T, k),
        kept(DType::i32, T, k),
        slot(DType::i32, T, k),
        chosen(DType::i32, G, E),
        token(DType::i32, T * k, 1),
        count(DType::i32, 1, E) {
    logits.randomize(1, 2);
    dweight.randomize(2);
    dp.randomize(3);
  }
  void top_k(const RouterKernels& kernels, bool renormalize, const Tensor& bias = {}) {
    kernels.softmax(context, p, log_z, logits);
    kernels.top_k(context, choice, p, bias);
    kernels.weigh(context, weight, p, choice, renormalize);
  }
  /// Choices made by hand, with the probability of each token's first one.
  void choose(const std::vector<double>& choices, const std::vector<double>& first_probability_T = {}) {
    choice.assign(choices);
    p.fill(0);
    for (std::size_t t = 0; t < first_probability_T.size(); ++t) {
      const auto token_index = std::int64_t(t);
      p.set(token_index * E + std::int64_t(choice.get(token_index * k)), first_probability_T[t]);
    }
  }
  void assign(const RouterKernels& kernels, std::int64_t slots, SlotPriority priority = SlotPriority::token_order) {
    kept.fill(1);
    assign_admitted(kernels, slots, priority);
  }
  /// Where not every choice claims a slot: kept says which ones do.
  void assign_admitted(const RouterKernels& kernels, std::int64_t slots,
                       SlotPriority priority = SlotPriority::token_order) {
    const std::vector<std::int64_t> capacity(static_cast<std::size_t>(G), slots);
    kernels.assign(context, kept, chosen, choice, p, first, capacity, priority);
    map_rows(kernels);
  }
  void map_rows(const RouterKernels& kernels) {
    kernels.row_map(context, slot, token, count, choice, kept);
    rows = 0;
    for (std::int64_t e = 0; e < E; ++e) rows += std::int64_t(count.get(e));
  }
  void softmax_in_double() { reference::router_kernels.softmax(context, p, log_z, logits); }
  /// Experts take tokens; k is E.
  void expert_choice(const RouterKernels& kernels, const std::vector<std::int64_t>& capacity) {
    kernels.expert_choice(context, kept, chosen, choice, p, first, capacity);
    map_rows(kernels);
  }
  void backward(const RouterKernels& kernels, double z_scale, bool renormalize) {
    kernels.backward(context, dlogits, dweight, dp, z_scale, p, log_z, choice, first, renormalize);
  }
  TestContext context;
  std::int64_t T, E, k;
  std::vector<std::int64_t> first;
  std::int64_t G;
  Buffer logits, p, log_z, weight, dweight, dp, dlogits, choice, kept, slot, chosen, token, count;
  std::int64_t rows = -1;
};

inline std::vector<Implementation<RouterKernels>> router_devices() {
  const auto all = devices_of(reference::router_kernels, cpu::router_kernels, cuda_router);
  return {all.begin(), all.end()};
}

}  // namespace flanmoe::test
