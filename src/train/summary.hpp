// What a finished run was: RUN/summary.json.
#pragma once

#include <array>
#include <string>
#include <vector>

#include "base/timer.hpp"
#include "deck/deck.hpp"
#include "parallel/communicator.hpp"
#include "train/flops.hpp"
#include "train/metrics.hpp"
#include "train/plan/prediction.hpp"
#include "train/saver.hpp"

namespace flanmoe {

/// What this process knows about its own part of the run: from its first step to its end.
struct SessionFacts {
  std::int64_t steps = 0, tokens = 0;
  double step_seconds = 0;
  double first_step_seconds = 0;  // it also makes the kernels
  std::array<double, std::size_t(Part::count)> first_step_parts{};
  /// Up to the newest step that counts.
  std::array<double, std::size_t(Part::count)> parts{};
  Traffic traffic;              // of this rank in all steps
  std::int64_t data_waits = 0;  // steps whose batch was not read in time
  SaveTotals saves;             // all of the session, whatever it went back on
  WorkCounts work;
  double roof_flops_per_second = 0;  // 0: not measured
  std::int64_t parameters = 0;       // of the whole model
  std::size_t announced_bytes = 0;   // of this rank, on its host
  std::size_t device_bytes = 0;      // and in the memory of its GPU
  int threads = 0;
};

/// Gathers what ranks must add, and on rank 0 writes the file and logs the main figures. Collective.
void write_summary(const std::string& path, const std::string& metrics_path, const Deck& deck,
                   const SessionFacts& facts, const StepPrediction& prediction, const Communicator& world);

/// Steps of the finished run that a summary describes; 0 when there is none.
std::int64_t steps_of_summary(const std::string& path);

}  // namespace flanmoe
