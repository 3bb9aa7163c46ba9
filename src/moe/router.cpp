#include "moe/router.hpp"

#include <algorithm>
#include <array>
#include <numeric>

#include "base/timer.hpp"
#include "moe/leaves.hpp"

namespace flanmoe {
namespace {

/// What a forward did, for the host: kept copies by expert, and sums for the statistics; those of fractions leaf by
/// leaf, then over leaves. measured_LS: what RouterKernels::measure said of each leaf, but all kept copies.
void add_measures(RouterActivations& saved, MoeLayerStatistics& statistics, const Tensor& measured_LS,
                  const RoutingGroups& groups, double scale) {
  const std::size_t experts = saved.kept_E.size();
  LeafNumbers<3> sums;
  double claimed = 0.0;
  if (statistics.load_E.empty()) statistics.load_E.assign(experts, 0.0);
  for (std::int64_t leaf = 0; leaf < measured_LS.rows; ++leaf) {
    const double* of_leaf = measured_LS.row<double>(leaf);
    const double *claims = of_leaf + RouterMeasures::per_expert, *kept = claims + experts;
    std::copy(kept, kept + experts, saved.kept_E.begin());
    for (std::size_t e = 0; e < experts; ++e) {
      statistics.load_E[e] += claims[e];
      claimed += claims[e];
    }
    statistics.unrouted += of_leaf[RouterMeasures::unrouted];
    sums.add({of_leaf[RouterMeasures::entropy], of_leaf[RouterMeasures::log_z2] / double(groups.step_tokens),
              scale * of_leaf[RouterMeasures::balance] / double(groups.step_groups)});
  }
  saved.rows = std::accumulate(saved.kept_E.begin(), saved.kept_E.end(), std::int64_t{0});
  FLANMOE_EXPECT(saved.rows <= saved.token_N.rows, "{} kept copies, room for {}", saved.rows, saved.token_N.rows);
  statistics.tokens += double(groups.tokens());
  statistics.dropped += claimed - double(saved.rows);
  statistics.entropy += sums.sum()[0];
  statistics.z += sums.sum()[1];
  statistics.balance += sums.sum()[2];
}

/// What the routing of each leaf did, on the device: a row of measure_LS for each.
void measure_leaves(const LayerContext& c, RouterWork& work, const RouterActivations& saved, const Tensor& logits_TE,
                    const RoutingGroups& groups) {
  const std::int64_t leaves = leaf_count(groups.leaf_token),
                     count = groups.count() / leaves;  // a leaf holds whole groups
  for (std::int64_t leaf = 0; leaf < leaves; ++leaf) {
    const std::int64_t begin = groups.leaf_token[std::size_t(leaf)], end = groups.leaf_token[std::size_t(leaf) + 1];
    work.first_token.clear();
    for (std::int64_t group = leaf * count; group <= (leaf + 1) * count; ++group) {
      work.first_token.push_back(groups.first_token[std::size_t(group)] - begin);
    }
    const auto tokens = [&](const Tensor& t) { return t.slice_rows(begin, end - begin); };
    const auto of_groups = [&](const Tensor& t) { return t.rows == 0 ? Tensor{} : t.slice_rows(leaf * count, count); };
    c.k.router.measure(c.context, work.measure_LS.slice_rows(leaf, 1), tokens(logits_TE), tokens(saved.p_TE),
                       tokens(saved.log_z_T), tokens(saved.kept_Tk), saved.count_E, of_groups(saved.chosen_GE),
                       of_groups(saved.balance_GE), work.first_token);
  }
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
                     std::int64_t leaves, std::int64_t width) {
  const DType a = accumulate_dtype(compute);
  logits_TE = arena.allocate(a, tokens, moe.experts);
  dp_GE = arena.allocate(a, groups, moe.experts);
  if (a != compute || moe.jitter > 0.0) x_TD = arena.allocate(a, tokens, width);
  measure_LS = arena.allocate(DType::f64, leaves, RouterMeasures::size(moe.experts));
  measured_LS.assign(std::size_t(measure_LS.size()), 0.0);
  first_token.reserve(std::size_t(groups) + 1);
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
  c.k.router.row_map(c.context, rows(saved.slot_Tk), saved.token_N, saved.count_E, rows(saved.choice_Tk),
                     rows(saved.kept_Tk));
  measure_leaves(c, work, saved, logits_TE, groups);
  const Tensor measure_LS = first_rows(work.measure_LS, leaf_count(groups.leaf_token));
  const Tensor measured_LS = make_tensor(work.measured_LS.data(), measure_LS.rows, measure_LS.cols);
  c.k.transfer.download(c.context, measured_LS, measure_LS);
  add_measures(saved, statistics, measured_LS, groups, balance_scale(moe));
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
  add_weight_gradient(c, router.router_DE, x, dlogits_TE, groups.leaf_token);
  const Tensor dx = changes_input(c) ? rows(work.x_TD) : dx_TD;
  c.k.matmul.product(c.context, dx, dlogits_TE, Transpose::no, c.weight(router.router_DE), Transpose::yes, 0.0F);
  if (jitter.size > 0.0) c.k.router.jitter(c.context, dx, dx, jitter);
  if (changes_input(c)) c.k.elementwise.convert(c.context, dx_TD, dx);
}

}  // namespace flanmoe
