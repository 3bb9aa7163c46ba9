// A sparse layer: router -> dispatcher -> experts -> combine. Nothing else crosses between the four. Shared experts, a
// feed-forward that every token passes, are added to what comes out.
#pragma once

#include "moe/dispatcher.hpp"
#include "moe/feed_forward.hpp"
#include "moe/router.hpp"

namespace flanmoe {

/// What a sparse layer is: its weights (indices into the store), how it routes, the place of its random numbers, and
/// the number of sparse layers among which auxiliary losses are shared.
struct MoeLayer {
  MoeTensors<int> weights;
  Routing routing;
  std::uint32_t site = 0;
  std::int64_t layers = 1;
};

/// Saved by one sparse layer for its backward; buffers for the largest microbatch.
struct MoeActivations {
  RouterActivations router;
  DispatchRecord dispatch;
  FeedForwardActivations experts, shared;
  Tensor x_RD;    // C: rows received, in expert order
  Tensor row_ND;  // C: what the experts answered for this rank's copies, in expert order

  void lay(Arena& arena, const Deck& deck, const Routing& routing, DType compute, std::int64_t tokens,
           std::int64_t groups, std::int64_t leaves, const RowLimits& limits, std::int64_t ranks);
};

/// Temporary memory, shared by all sparse layers; `columns` is the largest of their Routing::columns.
struct MoeWork {
  RouterWork router;
  FeedForwardWork experts, shared;
  Tensor send_ND, y_RD, dx_RD;                  // C
  Tensor shared_TD;                             // C
  Tensor dweight_Tk;                            // A
  std::vector<std::int64_t> first, leaf_first;  // DispatchRecord's of a chunk, from its first row on
  std::vector<std::int64_t> expert_R;           // expert of each row, addresses its dropout mask
  std::vector<std::int32_t> position_R;         // zeros

  void lay(Arena& arena, const Deck& deck, std::int64_t columns, DType compute, std::int64_t tokens,
           std::int64_t groups, std::int64_t leaves, const RowLimits& limits);
};

/// y_TD (C) = sparse feed-forward of x_TD (C). Collective over the expert group.
void moe_forward(const LayerContext&, const Tensor& y_TD, MoeActivations& saved, MoeWork& work, Dispatcher& dispatcher,
                 const Tensor& x_TD, const MoeLayer& layer, const RoutingGroups& groups,
                 MoeLayerStatistics& statistics);

/// dx_TD (C, written) from dy_TD (C), task and auxiliary losses; gradients of router and experts written by the first
/// contribution of a step, added to by later ones. Collective.
void moe_backward(const LayerContext&, const Tensor& dx_TD, MoeWork& work, Dispatcher& dispatcher, const Tensor& dy_TD,
                  const Tensor& x_TD, const MoeLayer& layer, const MoeActivations& saved, const RoutingGroups& groups);

}  // namespace flanmoe
