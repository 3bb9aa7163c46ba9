#include "moe/router.hpp"

#include <cmath>
#include <limits>
#include <numeric>

#include "base/timer.hpp"

namespace flanmoe {
namespace {

/// Loss terms and counters of one forward; T is the accumulate type.
template <class T>
void add_statistics(MoeLayerStatistics& statistics, const RouterActivations& saved, const Tensor& logits_TE,
                    const RoutingGroups& groups) {
  const std::int64_t experts = logits_TE.cols;
  if (statistics.load_E.empty()) statistics.load_E.assign(std::size_t(experts), 0.0);
  double z = 0.0;
  for (std::int64_t t = 0; t < groups.tokens(); ++t) {
    const T* p = saved.p_TE.row<T>(t);
    const T* logit = logits_TE.row<T>(t);
    const double log_z = double(*saved.log_z_T.row<T>(t));
    double mean_logit = 0.0;
    for (std::int64_t e = 0; e < experts; ++e) mean_logit += double(p[e]) * double(logit[e]);
    statistics.entropy += log_z - mean_logit;
    z += log_z * log_z;
  }
  statistics.z += z / double(groups.step_tokens);
  for (std::int64_t g = 0; g < groups.count(); ++g) {
    const std::int64_t first = groups.first_token[std::size_t(g)];
    const std::int64_t last = groups.first_token[std::size_t(g) + 1];
    if (first == last) continue;
    const std::int32_t* chosen = saved.chosen_GE.row<std::int32_t>(g);
    double product = 0.0;
    for (std::int64_t e = 0; e < experts; ++e) {
      double mass = 0.0;
      for (std::int64_t t = first; t < last; ++t) mass += double(saved.p_TE.row<T>(t)[e]);
      product += double(chosen[e]) * mass;
      statistics.load_E[std::size_t(e)] += chosen[e];
    }
    const double tokens = double(last - first);
    statistics.balance += double(experts) * product / (tokens * tokens) / double(groups.step_groups);
  }
  const auto kept = first_rows(saved.kept_Tk, groups.tokens()).flat<std::int32_t>();
  statistics.tokens += double(groups.tokens());
  statistics.dropped += double(kept.size()) - std::accumulate(kept.begin(), kept.end(), 0.0);
}

/// Gradient of the balance loss by p: coefficient * E * f_e / (layers * groups * tokens of the group).
template <class T>
void balance_gradient(const Tensor& dp_GE, const RouterActivations& saved, const RoutingGroups& groups,
                      double coefficient, std::int64_t layers) {
  const std::int64_t experts = dp_GE.cols;
  for (std::int64_t g = 0; g < groups.count(); ++g) {
    const double tokens = double(groups.first_token[std::size_t(g) + 1] - groups.first_token[std::size_t(g)]);
    const std::int32_t* chosen = saved.chosen_GE.row<std::int32_t>(g);
    for (std::int64_t e = 0; e < experts; ++e) {
      const double f = tokens > 0 ? chosen[e] / tokens : 0.0;
      dp_GE.row<T>(g)[e] =
          tokens > 0 ? T(coefficient * double(experts) * f / (double(layers * groups.step_groups) * tokens)) : T(0);
    }
  }
}

}  // namespace

std::int64_t expert_capacity(double factor, std::int64_t tokens, std::int64_t experts, std::int64_t minimum) {
  if (factor == 0.0) return std::numeric_limits<std::int64_t>::max();
  return std::max(std::int64_t(std::nearbyint(factor * double(tokens) / double(experts))), minimum);
}

void RouterActivations::lay(Arena& arena, const MoeDeck& moe, DType compute, std::int64_t tokens, std::int64_t groups,
                            std::int64_t width) {
  const DType a = accumulate_dtype(compute);
  if (a != compute) input_TD = arena.allocate(a, tokens, width);
  p_TE = arena.allocate(a, tokens, moe.experts);
  log_z_T = arena.allocate(a, tokens, 1);
  weight_Tk = arena.allocate(a, tokens, moe.top_k);
  choice_Tk = arena.allocate(DType::i32, tokens, moe.top_k);
  kept_Tk = arena.allocate(DType::i32, tokens, moe.top_k);
  slot_Tk = arena.allocate(DType::i32, tokens, moe.top_k);
  token_N = arena.allocate(DType::i32, tokens * moe.top_k, 1);
  chosen_GE = arena.allocate(DType::i32, groups, moe.experts);
  count_E = arena.allocate(DType::i32, 1, moe.experts);
}

void RouterWork::lay(Arena& arena, const MoeDeck& moe, DType compute, std::int64_t tokens, std::int64_t groups,
                     std::int64_t width) {
  const DType a = accumulate_dtype(compute);
  logits_TE = arena.allocate(a, tokens, moe.experts);
  dp_GE = arena.allocate(a, groups, moe.experts);
  dx_TD = arena.allocate(a, tokens, width);
  capacity.reserve(std::size_t(groups));
}

void route_forward(const LayerContext& c, RouterActivations& saved, RouterWork& work, const Tensor& x_TD, int router,
                   const RoutingGroups& groups, MoeLayerStatistics& statistics) {
  const PartScope part(Part::routing);
  const MoeDeck& moe = c.deck.moe;
  const std::int64_t tokens = groups.tokens();
  const auto rows = [tokens](const Tensor& t) { return first_rows(t, tokens); };

  // 1. Logits in A, whatever the compute type (selective precision).
  Tensor x = x_TD;
  if (c.mixed()) {
    x = rows(saved.input_TD);
    c.k.elementwise.convert(c.context, x, x_TD);
  }
  const Tensor logits_TE = rows(work.logits_TE);
  c.k.matmul.product(c.context, logits_TE, x, Transpose::no, c.weight(router), Transpose::no, 0.0F);

  // 2. Choices, then slots under the capacity of each group.
  c.k.router.top_k(c.context, rows(saved.p_TE), rows(saved.log_z_T), rows(saved.choice_Tk), rows(saved.weight_Tk),
                   logits_TE, moe.renormalize);
  const double factor = c.training ? moe.capacity_factor : moe.capacity_factor_eval;
  work.capacity.clear();
  for (std::int64_t g = 0; g < groups.count(); ++g) {
    const std::int64_t size = groups.first_token[std::size_t(g) + 1] - groups.first_token[std::size_t(g)];
    work.capacity.push_back(expert_capacity(factor, size, moe.experts, moe.min_capacity));
  }
  const auto priority = moe.priority == "probability" ? SlotPriority::probability : SlotPriority::token_order;
  c.k.router.assign(c.context, rows(saved.kept_Tk), first_rows(saved.chosen_GE, groups.count()), rows(saved.choice_Tk),
                    rows(saved.p_TE), groups.first_token, work.capacity, priority);

  // 3. Rows in expert order.
  saved.rows = c.k.router.row_map(c.context, rows(saved.slot_Tk), first_rows(saved.token_N, tokens * moe.top_k),
                                  saved.count_E, rows(saved.choice_Tk), rows(saved.kept_Tk));
  if (c.accumulate() == DType::f64) {
    add_statistics<double>(statistics, saved, logits_TE, groups);
  } else {
    add_statistics<float>(statistics, saved, logits_TE, groups);
  }
}

void route_backward(const LayerContext& c, const Tensor& dx_TD, RouterWork& work, const Tensor& dweight_Tk,
                    const Tensor& x_TD, int router, const RouterActivations& saved, const RoutingGroups& groups,
                    std::int64_t layers) {
  const PartScope part(Part::routing);
  const MoeDeck& moe = c.deck.moe;
  const std::int64_t tokens = groups.tokens();
  const auto rows = [tokens](const Tensor& t) { return first_rows(t, tokens); };

  const Tensor dp_GE = first_rows(work.dp_GE, groups.count());
  if (c.accumulate() == DType::f64) {
    balance_gradient<double>(dp_GE, saved, groups, moe.balance_coefficient, layers);
  } else {
    balance_gradient<float>(dp_GE, saved, groups, moe.balance_coefficient, layers);
  }
  const double z_scale = moe.z_coefficient / double(layers * groups.step_tokens);
  const Tensor dlogits_TE = rows(work.logits_TE);
  c.k.router.backward(c.context, dlogits_TE, dweight_Tk, dp_GE, z_scale, rows(saved.p_TE), rows(saved.log_z_T),
                      rows(saved.choice_Tk), groups.first_token, moe.renormalize);

  const Tensor x = c.mixed() ? rows(saved.input_TD) : x_TD;
  c.k.matmul.product(c.context, c.gradient(router), x, Transpose::yes, dlogits_TE, Transpose::no, 1.0F);
  const Tensor dx = c.mixed() ? rows(work.dx_TD) : dx_TD;
  c.k.matmul.product(c.context, dx, dlogits_TE, Transpose::no, c.weight(router), Transpose::yes, 0.0F);
  if (c.mixed()) c.k.elementwise.convert(c.context, dx_TD, dx);
}

}  // namespace flanmoe
