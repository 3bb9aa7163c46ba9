// Which steps are bad, and how many of them a run forgives.
#pragma once

#include <cstdint>
#include <deque>
#include <set>
#include <string>

#include "deck/deck.hpp"
#include "parallel/communicator.hpp"
#include "train/trainer.hpp"

namespace flanmoe {

class BadSteps {
 public:
  static constexpr std::size_t kRecent = 32;  // steps whose median a spike is measured against
  static constexpr std::size_t kEnough = 8;   // with fewer than these nothing is a spike

  explicit BadSteps(const FaultsDeck& deck) : deck_(deck) {}
  /// What the next step may not exceed. A function of the losses and norms of recent steps alone, so a restarted run
  /// has the same limits.
  StepLimits limits() const;
  void add(double loss, double norm);
  /// The recent steps of a metrics file, instead of those known. Collective.
  void recall(const std::string& metrics, const Communicator& world);

  /// After BadStep: throws it again when the deck says stop, or too many were forgiven; else remembers it.
  void forgive(const BadStep& bad);
  /// The step's batch was bad before.
  bool is_again(std::int64_t step) const { return seen_.contains(step); }

 private:
  const FaultsDeck& deck_;
  std::deque<double> losses_, norms_;
  std::set<std::int64_t> seen_;      // steps with bad batches, from 0
  std::int64_t machine_faults_ = 0;  // no batch is to blame: each counts, also in the same step again
};

}  // namespace flanmoe
