#include "moe/moe_layer.hpp"

#include <array>

namespace flanmoe {
namespace {

/// Expert dropout uses one mask per expert, shared by all its rows (paper facts 4.7): rows [first[e], first[e+1]) take
/// the mask of expert first_expert + e.
DropoutMask expert_mask(const LayerContext& c, MoeWork& work, std::span<const std::int64_t> first,
                        std::int64_t first_expert, std::uint32_t site) {
  if (!c.training || c.deck.moe.expert_dropout == 0.0) return {};
  work.expert_R.clear();
  for (std::size_t e = 0; e + 1 < first.size(); ++e) {
    work.expert_R.insert(work.expert_R.end(), std::size_t(first[e + 1] - first[e]), first_expert + std::int64_t(e));
  }
  work.position_R.assign(work.expert_R.size(), 0);
  return c.mask(c.deck.moe.expert_dropout, site, work.expert_R, work.position_R);
}

/// What sums over the rows of each expert walk through.
std::span<const std::int64_t> leaves_of(const LayerContext& c, const DispatchRecord& dispatch) {
  return c.store.sums().leaves ? dispatch.leaf_first : dispatch.first;
}

/// The experts of a chunk as a grouped feed-forward.
FeedForward chunk_of(const LayerContext& c, MoeWork& work, const MoeLayer& layer, const DispatchRecord& dispatch,
                     std::int64_t chunk) {
  const FeedForwardTensors<int>& weights = layer.weights.experts;
  const std::int64_t begin = dispatch.chunk_first[std::size_t(chunk)],
                     end = dispatch.chunk_first[std::size_t(chunk) + 1], first_row = dispatch.rows_of(chunk).first;
  const auto from_first_row = [&](std::vector<std::int64_t>& to, std::span<const std::int64_t> all) {
    const std::int64_t of_expert = leaf_count(all) / leaf_count(dispatch.first);
    to.clear();
    for (std::int64_t i = begin * of_expert; i <= end * of_expert; ++i) to.push_back(all[std::size_t(i)] - first_row);
  };
  from_first_row(work.first, dispatch.first);
  from_first_row(work.leaf_first, leaves_of(c, dispatch));
  const std::int64_t number = c.store.first_expert(weights.up) + begin;
  return {weights,       work.first, work.leaf_first, expert_mask(c, work, work.first, number, layer.site),
          Part::experts, begin,      first_row};
}

/// The shared experts as one feed-forward, behind the others in the numbers of the masks.
FeedForward shared_of(const LayerContext& c, MoeWork& work, const MoeLayer& layer,
                      std::span<const std::int64_t, 2> first, std::span<const std::int64_t> leaf_token) {
  return {layer.weights.shared, first, leaf_token, expert_mask(c, work, first, c.deck.moe.experts, layer.site),
          Part::experts};
}

Router router_of(const LayerContext& c, const MoeLayer& layer) {
  const bool biased = c.deck.moe.bias_rate > 0.0 && !layer.routing.expert_choice;
  return {layer.weights.router_DE, biased ? layer.weights.bias_E : -1, layer.routing, layer.site, layer.layers};
}

/// The table of gradients by combine weights of a layer with so many columns, in the work memory of all.
Tensor dweight_of(const MoeWork& work, std::int64_t tokens, std::int64_t columns) {
  Tensor t = work.dweight_Tk;
  t.rows = tokens;
  t.cols = t.stride = columns;
  return t;
}

std::int64_t shared_hidden(const Deck& deck) { return deck.moe.shared_experts * deck.model.hidden; }

}  // namespace

void MoeActivations::lay(Arena& arena, const Deck& deck, const Routing& routing, DType compute, std::int64_t tokens,
                         std::int64_t groups, std::int64_t leaves, const RowLimits& limits, std::int64_t ranks) {
  router.lay(arena, deck.moe, routing, compute, tokens, groups, limits.copies);
  dispatch.lay(arena, ranks, deck.moe.experts / ranks, leaves, limits.received, dispatch_chunks(deck, ranks));
  experts.lay(arena, deck.model, compute, limits.received, deck.model.hidden);
  if (deck.moe.shared_experts > 0) shared.lay(arena, deck.model, compute, tokens, shared_hidden(deck));
  x_RD = arena.allocate(compute, limits.received, deck.model.width);
  row_ND = arena.allocate(compute, limits.copies, deck.model.width);
}

void MoeWork::lay(Arena& arena, const Deck& deck, std::int64_t columns, DType compute, std::int64_t tokens,
                  std::int64_t groups, std::int64_t leaves, const RowLimits& limits) {
  router.lay(arena, deck.moe, compute, tokens, groups, leaves, deck.model.width);
  // Sources are at most the ranks of the expert group, so that this is enough.
  experts.lay(arena, deck.model, compute, limits.received, deck.moe.experts, deck.model.hidden);
  if (deck.moe.shared_experts > 0) {
    shared.lay(arena, deck.model, compute, tokens, 1, shared_hidden(deck));
    shared_TD = arena.allocate(compute, tokens, deck.model.width);
  }
  send_ND = arena.allocate(compute, limits.copies, deck.model.width);
  y_RD = arena.allocate(compute, limits.received, deck.model.width);
  dx_RD = arena.allocate(compute, limits.received, deck.model.width);
  dweight_Tk = arena.allocate(accumulate_dtype(compute), tokens, columns);
  first.reserve(std::size_t(deck.moe.experts) + 1);
  leaf_first.reserve(std::size_t(deck.moe.experts * leaves) + 1);  // local experts times ranks are all experts
  expert_R.reserve(std::size_t(std::max(limits.received, tokens)));
  position_R.reserve(std::size_t(std::max(limits.received, tokens)));
}

void moe_forward(const LayerContext& c, const Tensor& y_TD, MoeActivations& saved, MoeWork& work,
                 Dispatcher& dispatcher, const Tensor& x_TD, const MoeLayer& layer, const RoutingGroups& groups,
                 MoeLayerStatistics& statistics) {
  const std::int64_t tokens = x_TD.rows;
  const PartScope part(Part::routing);
  // 1. Router: who goes where, with which weight.
  route_forward(c, saved.router, work.router, x_TD, router_of(c, layer), groups, statistics);
  // 2. Dispatch: copies in expert order, then to the ranks of their experts.
  dispatcher.plan(c, saved.dispatch, saved.router.kept_E, saved.router.token_N, groups.leaf_token, saved.x_RD.rows);
  const std::int64_t sent = saved.dispatch.sent;
  const Tensor x_RD = first_rows(saved.x_RD, saved.dispatch.received);
  const Tensor send_ND = dispatcher.local() ? x_RD : first_rows(work.send_ND, sent);
  c.k.permute.gather(c.context, send_ND, x_TD, first_rows(saved.router.token_N, sent));
  dispatcher.send(send_ND, saved.dispatch);
  // 3. Shared experts, while rows travel.
  const Tensor shared_TD = first_rows(work.shared_TD, c.deck.moe.shared_experts > 0 ? tokens : 0);
  if (c.deck.moe.shared_experts > 0) {
    const std::array<std::int64_t, 2> first = {0, tokens};
    feed_forward(c, shared_TD, saved.shared, x_TD, shared_of(c, work, layer, first, groups.leaf_token));
  }
  // 4. Experts: those of a chunk compute while the rows of others travel.
  const Tensor row_ND = first_rows(saved.row_ND, sent);
  const Tensor expert_y_RD = dispatcher.local() ? row_ND : first_rows(work.y_RD, saved.dispatch.received);
  for (std::int64_t chunk = 0; chunk < saved.dispatch.chunks(); ++chunk) {
    const RowRange rows = saved.dispatch.rows_of(chunk);
    const auto of_chunk = [&](const Tensor& t) { return t.slice_rows(rows.first, rows.count); };
    dispatcher.receive(c, x_RD, saved.dispatch, chunk);
    feed_forward(c, of_chunk(expert_y_RD), saved.experts, of_chunk(x_RD),
                 chunk_of(c, work, layer, saved.dispatch, chunk));
    dispatcher.send_back(c, row_ND, expert_y_RD, saved.dispatch, chunk);
  }
  dispatcher.receive_back();
  // 5. Combine: each token sums its copies, which are home again, in the order of its columns.
  c.k.permute.combine_forward(c.context, y_TD, row_ND, first_rows(saved.router.weight_Tk, tokens),
                              first_rows(saved.router.slot_Tk, tokens));
  if (c.deck.moe.shared_experts > 0) c.k.elementwise.add(c.context, y_TD, shared_TD);
}

void moe_backward(const LayerContext& c, const Tensor& dx_TD, MoeWork& work, Dispatcher& dispatcher,
                  const Tensor& dy_TD, const Tensor& x_TD, const MoeLayer& layer, const MoeActivations& saved,
                  const RoutingGroups& groups) {
  const std::int64_t tokens = x_TD.rows;
  const PartScope part(Part::routing);
  const Tensor slot_Tk = first_rows(saved.router.slot_Tk, tokens);
  const Tensor dweight_Tk = dweight_of(work, tokens, layer.routing.columns);
  const Tensor drow_ND = first_rows(work.send_ND, saved.dispatch.sent);
  // 5. Combine.
  c.k.permute.combine_backward(c.context, drow_ND, dweight_Tk, dy_TD, first_rows(saved.row_ND, saved.dispatch.sent),
                               first_rows(saved.router.weight_Tk, tokens), slot_Tk);
  dispatcher.send(drow_ND, saved.dispatch);
  // 3. Shared experts, while row gradients travel.
  const Tensor shared_TD = first_rows(work.shared_TD, c.deck.moe.shared_experts > 0 ? tokens : 0);
  if (c.deck.moe.shared_experts > 0) {
    const std::array<std::int64_t, 2> first = {0, tokens};
    feed_forward_backward(c, shared_TD, work.shared, dy_TD, x_TD, saved.shared,
                          shared_of(c, work, layer, first, groups.leaf_token));
  }
  // 4. Experts, chunk by chunk, and home again.
  const std::int64_t received = saved.dispatch.received;
  const Tensor dy_RD = dispatcher.local() ? drow_ND : first_rows(work.y_RD, received);
  const Tensor dx_RD = first_rows(work.dx_RD, received);
  const Tensor dcopy_ND = dispatcher.local() ? dx_RD : drow_ND;
  for (std::int64_t chunk = 0; chunk < saved.dispatch.chunks(); ++chunk) {
    const RowRange rows = saved.dispatch.rows_of(chunk);
    const auto of_chunk = [&](const Tensor& t) { return t.slice_rows(rows.first, rows.count); };
    dispatcher.receive(c, dy_RD, saved.dispatch, chunk);
    feed_forward_input_gradient(c, of_chunk(dx_RD), work.experts, of_chunk(dy_RD), saved.experts,
                                chunk_of(c, work, layer, saved.dispatch, chunk));
    dispatcher.send_back(c, dcopy_ND, dx_RD, saved.dispatch, chunk);
  }
  // Beside the way home: the weights of all experts, and the router, whose own gradient by x is the base to which the
  // copies are added.
  feed_forward_weight_gradients(c, work.experts, dy_RD, first_rows(saved.x_RD, received), saved.experts,
                                {layer.weights.experts, saved.dispatch.first, leaves_of(c, saved.dispatch), {}});
  route_backward(c, dx_TD, work.router, dweight_Tk, x_TD, router_of(c, layer), saved.router, groups);
  dispatcher.receive_back();
  c.k.permute.gather_sum(c.context, dx_TD, dcopy_ND, slot_Tk, dx_TD);
  if (c.deck.moe.shared_experts > 0) c.k.elementwise.add(c.context, dx_TD, shared_TD);
}

}  // namespace flanmoe
