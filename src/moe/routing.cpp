#include "moe/routing.hpp"

#include <algorithm>
#include <cmath>
#include <limits>

namespace flanmoe {
namespace {

/// Slots over tokens per expert; 0: no limit.
double slot_factor(const MoeDeck& moe, const Routing& routing, bool training) {
  const double factor = training ? moe.capacity_factor : moe.capacity_factor_eval;
  return moe.capacity_times_k && !routing.expert_choice ? factor * double(moe.top_k) : factor;
}

/// Experts that choose have no minimum but one token (paper facts 4.5): a larger one would be most of a short input,
/// and evaluation, where every row is a group, would compute another function than training.
std::int64_t least_capacity(const MoeDeck& moe, const Routing& routing) {
  return routing.expert_choice ? 1 : moe.min_capacity;
}

}  // namespace

Routing routing_of(const MoeDeck& moe, bool encoder) {
  Routing routing;
  routing.expert_choice = (encoder ? moe.router : moe.decoder_router) == "expert_choice";
  routing.columns = routing.expert_choice ? moe.experts : moe.top_k;
  const std::string& priority = encoder ? moe.priority : moe.decoder_priority;
  if (priority == "probability") routing.priority = SlotPriority::probability;
  return routing;
}

std::int64_t expert_capacity(const MoeDeck& moe, const Routing& routing, bool training, std::int64_t tokens) {
  const double factor = slot_factor(moe, routing, training);
  if (factor == 0.0) return std::numeric_limits<std::int64_t>::max();
  const double slots = factor * double(tokens) / double(moe.experts);
  // nearbyint rounds half to even.
  const double whole = moe.capacity_rounding == "down" ? std::floor(slots) : std::nearbyint(slots);
  const std::int64_t capacity = std::max(std::int64_t(whole), least_capacity(moe, routing));
  return routing.expert_choice ? std::min(capacity, tokens) : capacity;
}

RowLimits row_limits(const MoeDeck& moe, const Routing& routing, bool training, std::int64_t ranks, std::int64_t tokens,
                     std::int64_t groups) {
  const double factor = slot_factor(moe, routing, training);
  std::int64_t of_expert = tokens;  // rows that one rank sends to one expert: a token goes there once at most
  if (factor > 0.0) {
    // Each group gives an expert at most max(round(factor*t/E), minimum) <= factor*t/E + 1/2 + minimum rows.
    const double least = double(least_capacity(moe, routing));
    const double slots = factor * double(tokens) / double(moe.experts) + double(groups) * (least + 0.5);
    of_expert = std::min(of_expert, std::int64_t(std::ceil(slots)));
  }
  const std::int64_t local_experts = moe.experts / ranks;
  RowLimits limits;
  limits.copies = std::min(tokens * routing.columns, moe.experts * of_expert);
  limits.received = ranks * std::min(tokens * std::min(routing.columns, local_experts), local_experts * of_expert);
  if (factor == 0.0 && moe.buffer_factor > 0.0) {
    const double most = moe.buffer_factor * double(tokens * routing.columns);
    limits.received = std::min(limits.received, std::int64_t(std::ceil(most)));
  }
  return limits;
}

std::int64_t dispatch_chunks(const Deck& deck, std::int64_t ranks) {
  if (ranks == 1) return 1;
  // With two chunks half of the exchange has nothing to hide behind; more of them make smaller products.
  const std::int64_t automatic = deck.run.device == "cuda" ? 2 : 1;
  const std::int64_t chunks = deck.moe.dispatch_chunks > 0 ? deck.moe.dispatch_chunks : automatic;
  return std::min(chunks, deck.moe.experts / ranks);
}

double auxiliary_share(const MoeDeck& moe, std::int64_t layers) {
  return moe.auxiliary_over_layers == "sum" ? 1.0 : 1.0 / double(std::max<std::int64_t>(1, layers));
}

double balance_scale(const MoeDeck& moe) {
  return moe.balance_scale == "gshard" ? 1.0 / double(moe.experts) : double(moe.experts);
}

}  // namespace flanmoe
