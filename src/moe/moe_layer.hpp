// A sparse layer: router -> dispatcher -> experts -> combine. Nothing else crosses between the four.
#pragma once

#include "moe/dispatcher.hpp"
#include "moe/feed_forward.hpp"
#include "moe/router.hpp"

namespace flanmoe {

/// Saved by one sparse layer for its backward; buffers for the largest microbatch.
struct MoeActivations {
  RouterActivations router;
  DispatchRecord dispatch;
  FeedForwardActivations experts;
  Tensor x_RD;    // C: rows received, in expert order
  Tensor row_ND;  // C: what the experts answered for this rank's copies, in expert order

  void lay(Arena& arena, const Deck& deck, DType compute, std::int64_t tokens, std::int64_t groups,
           std::int64_t received, std::int64_t ranks);
};

/// Temporary memory, shared by all sparse layers.
struct MoeWork {
  RouterWork router;
  FeedForwardWork experts;
  Tensor send_ND, y_RD, dx_RD;           // C
  Tensor dweight_Tk;                     // A
  std::vector<std::int64_t> expert_R;    // expert of each row, addresses its dropout mask
  std::vector<std::int32_t> position_R;  // zeros

  void lay(Arena& arena, const Deck& deck, DType compute, std::int64_t tokens, std::int64_t groups,
           std::int64_t received, std::int64_t local_experts);
};

/// y_TD (C) = sparse feed-forward of x_TD (C). Collective over the expert group.
void moe_forward(const LayerContext&, const Tensor& y_TD, MoeActivations& saved, MoeWork& work, Dispatcher& dispatcher,
                 const Tensor& x_TD, const MoeTensors<int>& weights, const RoutingGroups& groups,
                 MoeLayerStatistics& statistics, std::uint32_t dropout_site);

/// dx_TD (C, written) from dy_TD (C), task and auxiliary losses; gradients of router and experts added to. Collective.
void moe_backward(const LayerContext&, const Tensor& dx_TD, MoeWork& work, Dispatcher& dispatcher, const Tensor& dy_TD,
                  const Tensor& x_TD, const MoeTensors<int>& weights, const MoeActivations& saved,
                  const RoutingGroups& groups, std::int64_t layers, std::uint32_t dropout_site);

}  // namespace flanmoe
