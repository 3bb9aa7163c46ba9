#include "moe/router.hpp"

#include <algorithm>
#include <numeric>

#include "base/timer.hpp"

namespace flanmoe {
namespace {

/// What a forward did, for the host: kept copies by expert, and sums for the statistics.
void add_measures(RouterActivations& saved, MoeLayerStatistics& statistics, std::span<const double> measure_S,
                  const RoutingGroups& groups, double scale) {
  const std::size_t experts = saved.kept_E.size();
  const auto claims = measure_S.subspan(RouterMeasures::per_expert, experts);
  const auto kept = measure_S.subspan(RouterMeasures::per_expert + experts, experts);
  std::copy(kept.begin(), kept.end(), saved.kept_E.begin());
  saved.rows = std::accumulate(saved.kept_E.begin(), saved.kept_E.end(), std::int64_t{0});
  FLANMOE_EXPECT(saved.rows <= saved.token_N.rows, "{} kept copies, room for {}", saved.rows, saved.token_N.rows);
  if (statistics.load_E.empty()) statistics.load_E.assign(experts, 0.0);
  for (std::size_t e = 0; e < experts; ++e) statistics.load_E[e] += claims[e];
  statistics.tokens += double(groups.tokens());
  statistics.dropped += std::accumulate(claims.begin(), claims.end(), 0.0) - double(saved.rows);
  statistics.unrouted += measure_S[RouterMeasures::unrouted];
  statistics.entropy += measure_S[RouterMeasures::entropy];
  statistics.z += measure_S[RouterMeasures::log_z2] / double(groups.step_tokens);
  statistics.balance += scale * measure_S[RouterMeasures::balance] / double(groups.step_groups);
}

/// balance_GE of the groups in use; absent where experts choose.
Tensor balance_of(const RouterActivations& saved, const RoutingGroups& groups) {
  return saved.balance_GE.rows == 0 ? Tensor{} : first_rows(saved.balance_GE, groups.count());
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
  kept_E.assign(std::size_t(moe.experts), 0);
}

void RouterWork::lay(Arena& arena, const MoeDeck& moe, DType compute, std::int64_t tokens, std::int64_t groups,
                     std::int64_t width) {
  const DType a = accumulate_dtype(compute);
  logits_TE = arena.allocate(a, tokens, moe.experts);
  dp_GE = arena.allocate(a, groups, moe.experts);
  if (a != compute || moe.jitter > 0.0) x_TD = arena.allocate(a, tokens, width);
  measure_S = arena.allocate(DType::f64, 1, RouterMeasures::size(moe.experts));
  measured_S.assign(std::size_t(measure_S.cols), 0.0);
  capacity.reserve(std::size_t(groups));
}

void route_forward(const LayerContext& c, RouterActivations& saved, RouterWork& work, const Tensor& x_TD,
                   const Router& router, const RoutingGroups& groups, MoeLayerStatistics& statistics) {
  const PartScope part(Part::routing);
  const FullPrecision exact(c.context);
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

  // 3. Rows in expert order, and what the host must know of them.
  const Tensor kept_Tk = rows(saved.kept_Tk);
  c.k.router.row_map(c.context, rows(saved.slot_Tk), saved.token_N, saved.count_E, rows(saved.choice_Tk), kept_Tk);
  c.k.router.measure(c.context, work.measure_S, logits_TE, rows(saved.p_TE), rows(saved.log_z_T), kept_Tk,
                     saved.count_E, first_rows(saved.chosen_GE, groups.count()), balance_of(saved, groups),
                     groups.first_token);
  c.k.transfer.download(c.context, make_tensor(work.measured_S.data(), 1, work.measure_S.cols), work.measure_S);
  add_measures(saved, statistics, work.measured_S, groups, balance_scale(moe));
}

void route_backward(const LayerContext& c, const Tensor& dx_TD, RouterWork& work, const Tensor& dweight_Tk,
                    const Tensor& x_TD, const Router& router, const RouterActivations& saved,
                    const RoutingGroups& groups) {
  const PartScope part(Part::routing);
  const FullPrecision exact(c.context);
  const MoeDeck& moe = c.deck.moe;
  const auto rows = [&](const Tensor& t) { return first_rows(t, groups.tokens()); };
  const double share = auxiliary_share(moe, router.layers);

  // 1. By the logits.
  const Tensor dp_GE = first_rows(work.dp_GE, groups.count());
  const double weight = moe.balance_coefficient * share * balance_scale(moe);
  c.k.router.balance_gradient(c.context, dp_GE, balance_of(saved, groups), groups.first_token, weight,
                              groups.step_groups);
  const double z_scale = moe.z_coefficient * share / double(groups.step_tokens);
  const Tensor dlogits_TE = rows(work.logits_TE);
  c.k.router.backward(c.context, dlogits_TE, dweight_Tk, dp_GE, z_scale, rows(saved.p_TE), rows(saved.log_z_T),
                      rows(saved.choice_Tk), groups.first_token, renormalizes(c, router));
  if (router.bias_E >= 0 && c.trains(router.bias_E)) {
    c.k.router.add_claims(c.context, c.gradient(router.bias_E), first_rows(saved.chosen_GE, groups.count()));
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
