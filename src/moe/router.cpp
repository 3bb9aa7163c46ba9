#include "moe/router.hpp"

#include <algorithm>

#include "base/timer.hpp"

namespace flanmoe {
namespace {

/// Loss terms of one forward, before their coefficients; T is the accumulate type.
template <class T>
void add_losses(MoeLayerStatistics& statistics, const RouterActivations& saved, const Tensor& logits_TE,
                const RoutingGroups& groups, double scale) {
  const std::int64_t experts = logits_TE.cols;
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
  if (saved.balance_GE.absent()) return;
  for (std::int64_t g = 0; g < groups.count(); ++g) {
    const std::int64_t first = groups.first_token[std::size_t(g)];
    const std::int64_t last = groups.first_token[std::size_t(g) + 1];
    if (first == last) continue;
    const std::int32_t* chosen = saved.balance_GE.row<std::int32_t>(g);
    double product = 0.0;
    for (std::int64_t e = 0; e < experts; ++e) {
      double mass = 0.0;
      for (std::int64_t t = first; t < last; ++t) mass += double(saved.p_TE.row<T>(t)[e]);
      product += double(chosen[e]) * mass;
    }
    const double tokens = double(last - first);
    statistics.balance += scale * product / (tokens * tokens) / double(groups.step_groups);
  }
}

void add_counts(MoeLayerStatistics& statistics, const RouterActivations& saved, const RoutingGroups& groups) {
  const std::int64_t experts = saved.chosen_GE.cols;
  if (statistics.load_E.empty()) statistics.load_E.assign(std::size_t(experts), 0.0);
  double claims = 0.0;
  for (std::int64_t g = 0; g < groups.count(); ++g) {
    const std::int32_t* chosen = saved.chosen_GE.row<std::int32_t>(g);
    for (std::int64_t e = 0; e < experts; ++e) {
      statistics.load_E[std::size_t(e)] += chosen[e];
      claims += chosen[e];
    }
  }
  statistics.tokens += double(groups.tokens());
  statistics.dropped += claims - double(saved.rows);
  for (std::int64_t t = 0; t < groups.tokens(); ++t) {
    const std::int32_t* kept = saved.kept_Tk.row<std::int32_t>(t);
    if (std::find(kept, kept + saved.kept_Tk.cols, 1) == kept + saved.kept_Tk.cols) statistics.unrouted += 1;
  }
}

/// Gradient of the balance loss by p: weight * f_e / (groups * tokens of the group), f_e the fraction of tokens that
/// choose e; 0 where experts choose.
template <class T>
void balance_gradient(const Tensor& dp_GE, const RouterActivations& saved, const RoutingGroups& groups, double weight) {
  const bool none = saved.balance_GE.absent();
  for (std::int64_t g = 0; g < groups.count(); ++g) {
    const double tokens = double(groups.first_token[std::size_t(g) + 1] - groups.first_token[std::size_t(g)]);
    for (std::int64_t e = 0; e < dp_GE.cols; ++e) {
      const double f = none || tokens == 0 ? 0.0 : saved.balance_GE.row<std::int32_t>(g)[e] / tokens;
      dp_GE.row<T>(g)[e] = f > 0 ? T(weight * f / (double(groups.step_groups) * tokens)) : T(0);
    }
  }
}

/// What the update of the bias needs to know stands in its gradient: the claims of each expert. Whole numbers, so that
/// sums over microbatches and ranks are exact in any order.
template <class T>
void add_claims(const Tensor& claims_E, const Tensor& chosen_GE, std::int64_t groups) {
  for (std::int64_t g = 0; g < groups; ++g) {
    for (std::int64_t e = 0; e < claims_E.cols; ++e) claims_E.as<T>()[e] += T(chosen_GE.row<std::int32_t>(g)[e]);
  }
}

bool changes_input(const LayerContext& c) { return c.mixed() || (c.training && c.deck.moe.jitter > 0.0); }

/// The router's input: x_TD in A, jittered while training. The same again in the backward.
Tensor router_input(const LayerContext& c, RouterWork& work, const Tensor& x_TD, const Jitter& jitter) {
  if (!changes_input(c)) return x_TD;
  const Tensor x = first_rows(work.x_TD, x_TD.rows);
  if (jitter.size > 0.0) {
    c.k.router.jitter(c.context, x, x_TD, jitter);
  } else {
    c.k.elementwise.convert(c.context, x, x_TD);
  }
  return x;
}

Jitter jitter_of(const LayerContext& c, const Router& router, const RoutingGroups& groups) {
  return {c.training ? c.deck.moe.jitter : 0.0, c.random(RandomPurpose::router_jitter, router.site), groups.row_T,
          groups.position_T};
}

SecondChoices second_choices_of(const LayerContext& c, const Router& router, const RoutingGroups& groups) {
  const MoeDeck& moe = c.deck.moe;
  const std::string& policy = c.training ? moe.second_policy : moe.second_policy_eval;
  SecondChoices second{SecondPolicy::all, moe.second_threshold, c.random(RandomPurpose::router, router.site),
                       groups.row_T, groups.position_T};
  if (policy == "none") second.policy = SecondPolicy::none;
  if (policy == "threshold") second.policy = SecondPolicy::threshold;
  if (policy == "random") second.policy = SecondPolicy::random;
  return second;
}

/// Tokens choose experts, and claim slots in the order of their priority.
void choose_experts(const LayerContext& c, const RouterActivations& saved, const Router& router,
                    const RoutingGroups& groups, std::span<const std::int64_t> capacity) {
  const MoeDeck& moe = c.deck.moe;
  const auto rows = [&](const Tensor& t) { return first_rows(t, groups.tokens()); };
  const Tensor choice_Tk = rows(saved.choice_Tk);
  if (moe.forced_balance) {
    c.k.router.spread(c.context, choice_Tk, moe.experts, groups.row_T, groups.position_T);
  } else {
    const Tensor bias_E = router.bias_E >= 0 ? c.weight(router.bias_E) : Tensor{};
    c.k.router.top_k(c.context, choice_Tk, rows(saved.p_TE), bias_E);
  }
  c.k.router.weigh(c.context, rows(saved.weight_Tk), rows(saved.p_TE), choice_Tk, moe.renormalize);
  c.k.router.count(c.context, first_rows(saved.balance_GE, groups.count()), choice_Tk,
                   moe.balance_choices == "first" ? 1 : moe.top_k, groups.first_token);
  c.k.router.admit(c.context, rows(saved.kept_Tk), rows(saved.weight_Tk), second_choices_of(c, router, groups));
  c.k.router.assign(c.context, rows(saved.kept_Tk), first_rows(saved.chosen_GE, groups.count()), choice_Tk,
                    rows(saved.p_TE), groups.first_token, capacity, router.routing.priority);
}

/// Experts choose tokens.
void choose_tokens(const LayerContext& c, const RouterActivations& saved, const RoutingGroups& groups,
                   std::span<const std::int64_t> capacity) {
  const auto rows = [&](const Tensor& t) { return first_rows(t, groups.tokens()); };
  c.k.router.expert_choice(c.context, rows(saved.kept_Tk), first_rows(saved.chosen_GE, groups.count()),
                           rows(saved.choice_Tk), rows(saved.p_TE), groups.first_token, capacity);
}

bool renormalizes(const LayerContext& c, const Router& router) {
  return c.deck.moe.renormalize && !router.routing.expert_choice;
}

}  // namespace

void RouterActivations::lay(Arena& arena, const MoeDeck& moe, const Routing& routing, DType compute,
                            std::int64_t tokens, std::int64_t groups, std::int64_t copies) {
  const DType a = accumulate_dtype(compute);
  p_TE = arena.allocate(a, tokens, moe.experts);
  log_z_T = arena.allocate(a, tokens, 1);
  weight_Tk = routing.expert_choice ? p_TE : arena.allocate(a, tokens, routing.columns);
  choice_Tk = arena.allocate(DType::i32, tokens, routing.columns);
  kept_Tk = arena.allocate(DType::i32, tokens, routing.columns);
  slot_Tk = arena.allocate(DType::i32, tokens, routing.columns);
  token_N = arena.allocate(DType::i32, copies, 1);
  chosen_GE = arena.allocate(DType::i32, groups, moe.experts);
  if (!routing.expert_choice) balance_GE = arena.allocate(DType::i32, groups, moe.experts);
  count_E = arena.allocate(DType::i32, 1, moe.experts);
}

void RouterWork::lay(Arena& arena, const MoeDeck& moe, DType compute, std::int64_t tokens, std::int64_t groups,
                     std::int64_t width) {
  const DType a = accumulate_dtype(compute);
  logits_TE = arena.allocate(a, tokens, moe.experts);
  dp_GE = arena.allocate(a, groups, moe.experts);
  if (a != compute || moe.jitter > 0.0) x_TD = arena.allocate(a, tokens, width);
  capacity.reserve(std::size_t(groups));
}

void route_forward(const LayerContext& c, RouterActivations& saved, RouterWork& work, const Tensor& x_TD,
                   const Router& router, const RoutingGroups& groups, MoeLayerStatistics& statistics) {
  const PartScope part(Part::routing);
  const MoeDeck& moe = c.deck.moe;
  const auto rows = [&](const Tensor& t) { return first_rows(t, groups.tokens()); };

  // 1. Logits in A, whatever the compute type (selective precision).
  const Tensor x = router_input(c, work, x_TD, jitter_of(c, router, groups));
  const Tensor logits_TE = rows(work.logits_TE);
  c.k.matmul.product(c.context, logits_TE, x, Transpose::no, c.weight(router.router_DE), Transpose::no, 0.0F);
  c.k.router.softmax(c.context, rows(saved.p_TE), rows(saved.log_z_T), logits_TE);

  // 2. Who chooses whom, under the capacity of each group.
  work.capacity.clear();
  for (std::int64_t g = 0; g < groups.count(); ++g) {
    const std::int64_t size = groups.first_token[std::size_t(g) + 1] - groups.first_token[std::size_t(g)];
    work.capacity.push_back(expert_capacity(moe, router.routing, c.training, size));
  }
  if (router.routing.expert_choice) {
    choose_tokens(c, saved, groups, work.capacity);
  } else {
    choose_experts(c, saved, router, groups, work.capacity);
  }

  // 3. Rows in expert order.
  saved.rows = c.k.router.row_map(c.context, rows(saved.slot_Tk), saved.token_N, saved.count_E, rows(saved.choice_Tk),
                                  rows(saved.kept_Tk));
  add_counts(statistics, saved, groups);
  if (c.accumulate() == DType::f64) {
    add_losses<double>(statistics, saved, logits_TE, groups, balance_scale(moe));
  } else {
    add_losses<float>(statistics, saved, logits_TE, groups, balance_scale(moe));
  }
}

void route_backward(const LayerContext& c, const Tensor& dx_TD, RouterWork& work, const Tensor& dweight_Tk,
                    const Tensor& x_TD, const Router& router, const RouterActivations& saved,
                    const RoutingGroups& groups) {
  const PartScope part(Part::routing);
  const MoeDeck& moe = c.deck.moe;
  const auto rows = [&](const Tensor& t) { return first_rows(t, groups.tokens()); };
  const bool is_double = c.accumulate() == DType::f64;
  const double share = auxiliary_share(moe, router.layers);

  // 1. By the logits.
  const Tensor dp_GE = first_rows(work.dp_GE, groups.count());
  const double weight = moe.balance_coefficient * share * balance_scale(moe);
  is_double ? balance_gradient<double>(dp_GE, saved, groups, weight)
            : balance_gradient<float>(dp_GE, saved, groups, weight);
  const double z_scale = moe.z_coefficient * share / double(groups.step_tokens);
  const Tensor dlogits_TE = rows(work.logits_TE);
  c.k.router.backward(c.context, dlogits_TE, dweight_Tk, dp_GE, z_scale, rows(saved.p_TE), rows(saved.log_z_T),
                      rows(saved.choice_Tk), groups.first_token, renormalizes(c, router));
  if (router.bias_E >= 0 && c.trains(router.bias_E)) {
    const Tensor claims_E = c.gradient(router.bias_E);
    is_double ? add_claims<double>(claims_E, saved.chosen_GE, groups.count())
              : add_claims<float>(claims_E, saved.chosen_GE, groups.count());
  }

  // 2. By the matrix, and by the input.
  const Jitter jitter = jitter_of(c, router, groups);
  const Tensor x = router_input(c, work, x_TD, jitter);
  add_weight_gradient(c, router.router_DE, x, dlogits_TE);
  const Tensor dx = changes_input(c) ? rows(work.x_TD) : dx_TD;
  c.k.matmul.product(c.context, dx, dlogits_TE, Transpose::no, c.weight(router.router_DE), Transpose::yes, 0.0F);
  if (jitter.size > 0.0) c.k.router.jitter(c.context, dx, dx, jitter);
  if (changes_input(c)) c.k.elementwise.convert(c.context, dx_TD, dx);
}

}  // namespace flanmoe
