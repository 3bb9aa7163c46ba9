// How the sparse layers of one stack route: the moe section of the deck as that stack sees it, and the sizes that
// follow from it.
#pragma once

#include <cstdint>

#include "deck/deck.hpp"
#include "kernels/router.hpp"

namespace flanmoe {

struct Routing {
  bool expert_choice = false;                         // experts choose tokens, rather than tokens experts
  std::int64_t columns = 1;                           // of tables of copies: k, or E where experts choose
  SlotPriority priority = SlotPriority::token_order;  // where tokens choose
};

/// moe.router tells of the encoder, moe.decoder_router of the decoder.
Routing routing_of(const MoeDeck& moe, bool encoder);

/// Slots per expert in a group of `tokens` tokens (paper facts 4.3, 4.5): factor * tokens / experts, times k if
/// moe.capacity_times_k, rounded as moe.capacity_rounding says, moe.min_capacity at least. Experts that choose take at
/// least one token, whatever moe.min_capacity is, and no more than there are. Factor 0, where tokens choose, is
/// dropless: INT64_MAX.
std::int64_t expert_capacity(const MoeDeck& moe, const Routing& routing, bool training, std::int64_t tokens);

/// Upper bounds for one rank and microbatch.
struct RowLimits {
  std::int64_t copies = 0;    // of this rank's tokens, that experts get
  std::int64_t received = 0;  // rows for this rank's experts
};
/// When every rank of the expert group routes at most `tokens` tokens in at most `groups` groups.
RowLimits row_limits(const MoeDeck& moe, const Routing& routing, bool training, std::int64_t ranks, std::int64_t tokens,
                     std::int64_t groups);

/// Into how many chunks the experts of one rank are cut, of `ranks` ranks that share all of them: moe.dispatch_chunks,
/// or what it stands for where it is 0.
std::int64_t dispatch_chunks(const Deck& deck, std::int64_t ranks);

/// The weight of one sparse layer's auxiliary losses in the loss, of `layers` sparse layers.
double auxiliary_share(const MoeDeck& moe, std::int64_t layers);

/// What the balance loss sum_e f_e P_e is multiplied by: E, or 1/E in GShard's form (paper facts 4.4, 4.6).
double balance_scale(const MoeDeck& moe);

}  // namespace flanmoe
