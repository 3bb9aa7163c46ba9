// What was predicted of a training, beside what it measured.
#pragma once

#include <nlohmann/json.hpp>
#include <optional>

#include "parallel/communicator.hpp"
#include "train/plan/machine.hpp"
#include "train/plan/step_time.hpp"
#include "train/plan/step_traffic.hpp"

namespace flanmoe {

/// What one session of a run measured on this rank.
struct MeasuredSteps {
  std::int64_t steps = 0;
  double step_seconds = 0;  // mean without the first step, which also makes the kernels
  Traffic traffic;          // of all steps
  std::array<double, std::size_t(Part::count)> part_seconds{};  // the same over ranks too
  WorkCounts work;                                              // of all steps and ranks
};

class StepPrediction {
 public:
  /// Of this rank of a training. Everything is used by reference.
  StepPrediction(const Deck& deck, const ProcessGrid& grid, const ParameterStore& store);

  /// The machine of plan.machine. Throws UsageError.
  void read_description();
  /// Without one: the speeds of this rank that were measured at the start.
  void assume(double flops_per_rank, double bytes_per_second) {
    machine_ = machine_of_speed(flops_per_rank, bytes_per_second);
  }
  bool is_rough() const { return deck_.plan.machine.empty(); }

  /// Of a step of full rows; zero where nothing is known of the machine.
  StepTime full_step() const;
  const StepTraffic& traffic() const { return traffic_; }
  /// Predicted for the mean work of the steps, beside what they took.
  nlohmann::ordered_json compare(const MeasuredSteps& measured) const;

 private:
  const Deck& deck_;
  const ProcessGrid& grid_;
  const ParameterStore& store_;
  StepTraffic traffic_;
  std::optional<Machine> machine_;
};

}  // namespace flanmoe
