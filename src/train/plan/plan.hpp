// The plan of a training: what it takes on so many ranks, without running it.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "deck/deck.hpp"
#include "train/plan/machine.hpp"
#include "train/plan/step_time.hpp"
#include "train/plan/step_traffic.hpp"

namespace flanmoe {

struct ArenaSize {
  std::string name;
  std::size_t bytes = 0;
};

/// One layout, as its fullest rank sees it.
struct LayoutPlan {
  int ranks = 1, expert = 1;
  int rank = 0;                   // the fullest one
  std::vector<ArenaSize> arenas;  // as the trainer of that rank would take them
  std::size_t arena_bytes() const;
  StepTraffic traffic;
  WorkCounts work;  // of that rank, full rows
  StepTime time;    // zero without a machine
};

/// `expert` replaces parallel.expert; the deck must be right for so many ranks. `machine` may be null. Needs no MPI and
/// takes no memory for a model.
LayoutPlan plan_layout(const Deck& deck, int ranks, int expert, const Machine* machine);

/// The report of `flanmoe DECK --run.stage=plan`. Throws UsageError when the deck is wrong for so many ranks.
std::string plan_report(const Deck& deck);

}  // namespace flanmoe
