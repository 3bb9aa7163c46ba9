#include "moe/moe_layer.hpp"

namespace flanmoe {
namespace {

/// The experts as a grouped feed-forward. Expert dropout uses one mask per expert, shared by all its rows (paper facts
/// 4.7): the mask is addressed by the global index of the expert.
FeedForward experts_of(const LayerContext& c, MoeWork& work, const MoeTensors<int>& weights,
                       const DispatchRecord& dispatch, std::uint32_t site) {
  FeedForward layer{weights.experts, dispatch.first, {}, Part::experts};
  if (!c.training || c.deck.moe.expert_dropout == 0.0) return layer;
  work.expert_R.clear();
  for (std::size_t e = 0; e + 1 < dispatch.first.size(); ++e) {
    work.expert_R.insert(work.expert_R.end(), std::size_t(dispatch.first[e + 1] - dispatch.first[e]),
                         c.store.first_expert(weights.experts.up) + std::int64_t(e));
  }
  work.position_R.assign(work.expert_R.size(), 0);
  layer.dropout = c.mask(c.deck.moe.expert_dropout, site, work.expert_R, work.position_R);
  return layer;
}

}  // namespace

void MoeActivations::lay(Arena& arena, const Deck& deck, DType compute, std::int64_t tokens, std::int64_t groups,
                         std::int64_t received, std::int64_t ranks) {
  router.lay(arena, deck.moe, compute, tokens, groups, deck.model.width);
  dispatch.lay(arena, ranks, deck.moe.experts / ranks, received);
  experts.lay(arena, deck.model, compute, received);
  x_RD = arena.allocate(compute, received, deck.model.width);
  row_ND = arena.allocate(compute, tokens * deck.moe.top_k, deck.model.width);
}

void MoeWork::lay(Arena& arena, const Deck& deck, DType compute, std::int64_t tokens, std::int64_t groups,
                  std::int64_t received, std::int64_t local_experts) {
  router.lay(arena, deck.moe, compute, tokens, groups, deck.model.width);
  experts.lay(arena, deck.model, compute, received, local_experts);
  send_ND = arena.allocate(compute, tokens * deck.moe.top_k, deck.model.width);
  y_RD = arena.allocate(compute, received, deck.model.width);
  dx_RD = arena.allocate(compute, received, deck.model.width);
  dweight_Tk = arena.allocate(accumulate_dtype(compute), tokens, deck.moe.top_k);
  expert_R.reserve(std::size_t(received));
  position_R.reserve(std::size_t(received));
}

void moe_forward(const LayerContext& c, const Tensor& y_TD, MoeActivations& saved, MoeWork& work,
                 Dispatcher& dispatcher, const Tensor& x_TD, const MoeTensors<int>& weights,
                 const RoutingGroups& groups, MoeLayerStatistics& statistics, std::uint32_t dropout_site) {
  const std::int64_t tokens = x_TD.rows;
  const PartScope part(Part::routing);
  // 1. Router: who goes where, with which weight.
  route_forward(c, saved.router, work.router, x_TD, weights.router_DE, groups, statistics);
  // 2. Dispatch: copies in expert order, then to the ranks of their experts.
  dispatcher.plan(saved.dispatch, saved.router.count_E, saved.x_RD.rows);
  const std::int64_t sent = saved.dispatch.sent;
  const Tensor x_RD = first_rows(saved.x_RD, saved.dispatch.received);
  const Tensor send_ND = dispatcher.local() ? x_RD : first_rows(work.send_ND, sent);
  c.k.permute.gather(c.context, send_ND, x_TD, first_rows(saved.router.token_N, sent));
  dispatcher.send(c, x_RD, send_ND, saved.dispatch);
  // 3. Experts.
  const Tensor row_ND = first_rows(saved.row_ND, sent);
  const Tensor expert_y_RD = dispatcher.local() ? row_ND : first_rows(work.y_RD, saved.dispatch.received);
  feed_forward(c, expert_y_RD, saved.experts, x_RD, experts_of(c, work, weights, saved.dispatch, dropout_site));
  // 4. Combine: rows go home, each token sums its copies in the order of its choices.
  dispatcher.send_back(c, row_ND, expert_y_RD, saved.dispatch);
  c.k.permute.combine_forward(c.context, y_TD, row_ND, first_rows(saved.router.weight_Tk, tokens),
                              first_rows(saved.router.slot_Tk, tokens));
}

void moe_backward(const LayerContext& c, const Tensor& dx_TD, MoeWork& work, Dispatcher& dispatcher,
                  const Tensor& dy_TD, const Tensor& x_TD, const MoeTensors<int>& weights, const MoeActivations& saved,
                  const RoutingGroups& groups, std::int64_t layers, std::uint32_t dropout_site) {
  const std::int64_t tokens = x_TD.rows;
  const PartScope part(Part::routing);
  const Tensor slot_Tk = first_rows(saved.router.slot_Tk, tokens);
  const Tensor dweight_Tk = first_rows(work.dweight_Tk, tokens);
  const Tensor drow_ND = first_rows(work.send_ND, saved.dispatch.sent);
  // 4. Combine.
  c.k.permute.combine_backward(c.context, drow_ND, dweight_Tk, dy_TD, first_rows(saved.row_ND, saved.dispatch.sent),
                               first_rows(saved.router.weight_Tk, tokens), slot_Tk);
  const Tensor dy_RD = dispatcher.local() ? drow_ND : first_rows(work.y_RD, saved.dispatch.received);
  dispatcher.send(c, dy_RD, drow_ND, saved.dispatch);
  // 3. Experts.
  const Tensor dx_RD = first_rows(work.dx_RD, saved.dispatch.received);
  feed_forward_backward(c, dx_RD, work.experts, dy_RD, first_rows(saved.x_RD, saved.dispatch.received), saved.experts,
                        experts_of(c, work, weights, saved.dispatch, dropout_site));
  // 2. Dispatch: row gradients go home.
  const Tensor dcopy_ND = dispatcher.local() ? dx_RD : drow_ND;
  dispatcher.send_back(c, dcopy_ND, dx_RD, saved.dispatch);
  // 1. Router: its own gradient by x is the base to which the copies are added.
  route_backward(c, dx_TD, work.router, dweight_Tk, x_TD, weights.router_DE, saved.router, groups, layers);
  c.k.permute.gather_sum(c.context, dx_TD, dcopy_ND, slot_Tk, dx_TD);
}

}  // namespace flanmoe
