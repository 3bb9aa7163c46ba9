// How long a training step takes, from what is worked on and the rates of a machine.
#pragma once

#include <array>

#include "base/timer.hpp"
#include "deck/deck.hpp"
#include "parallel/process_grid.hpp"
#include "tensor/parameters.hpp"
#include "train/flops.hpp"
#include "train/plan/machine.hpp"
#include "train/plan/step_traffic.hpp"

namespace flanmoe {

struct StepTime {
  std::array<double, std::size_t(Part::count)> seconds{};  // by the parts that a run measures; data is read ahead
  double& operator[](Part part) { return seconds[std::size_t(part)]; }
  double operator[](Part part) const { return seconds[std::size_t(part)]; }
  double total() const;
};

/// What this rank works on in a step: its share of the batch when all rows are full.
WorkCounts full_work(const Deck& deck, const ProcessGrid& grid);

/// `work`: of this rank in one step. Frozen weights count as if they were trained; ranks are taken to be equally busy.
StepTime predict_time(const Deck& deck, const ProcessGrid& grid, const ParameterStore& store, const Machine& machine,
                      const WorkCounts& work, const StepTraffic& traffic);

}  // namespace flanmoe
