#include <algorithm>
#include <cmath>
#include <numbers>

#include "optimizer/optimizer.hpp"

namespace flanmoe {
namespace {

/// Progress from the end of the warm-up (0) to the last step (1).
double progress_after_warmup(double step, double warmup, double total) {
  if (total <= warmup) return 1.0;
  return std::clamp((step - warmup) / (total - warmup), 0.0, 1.0);
}

}  // namespace

double learning_rate(const OptimizerDeck& deck, std::int64_t step, std::int64_t total_steps) {
  const double base = deck.learning_rate;
  const auto t = double(step), warmup = double(deck.warmup_steps);
  if (deck.schedule == "constant") return base;
  if (deck.schedule == "rsqrt") return base / std::sqrt(std::max({t, warmup, 1.0}));

  FLANMOE_EXPECT(deck.schedule == "linear" || deck.schedule == "cosine", "optimizer.schedule = {}", deck.schedule);
  if (t < warmup) return base * t / warmup;
  const double progress = progress_after_warmup(t, warmup, double(total_steps));
  const double share = deck.schedule == "linear" ? 1.0 - progress : 0.5 * (1.0 + std::cos(std::numbers::pi * progress));
  return base * (deck.final_fraction + (1.0 - deck.final_fraction) * share);
}

}  // namespace flanmoe
