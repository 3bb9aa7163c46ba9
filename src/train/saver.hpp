// When a run saves its state: before or behind the next steps, and what happens when it cannot.
#pragma once

#include <cstdint>
#include <functional>
#include <nlohmann/json.hpp>
#include <string>

#include "deck/deck.hpp"
#include "parallel/communicator.hpp"
#include "train/trainer.hpp"

namespace flanmoe {

/// What the checkpoints of a session cost.
struct SaveTotals {
  std::int64_t count = 0, bytes = 0;
  double seconds = 0;  // of all together; the training goes on meanwhile
  double stall_seconds = 0, longest_stall_seconds = 0;
};

/// All calls are collective, and throw on all ranks or on none.
class Saver {
 public:
  /// `events`: file that gets a line for every checkpoint and every fault; never cut.
  Saver(const CheckpointDeck& deck, Trainer& trainer, const Communicator& world, std::string events)
      : deck_(deck), trainer_(trainer), world_(world), events_(std::move(events)) {}

  /// Saves the state after info.step steps, having called `before` on rank 0. With checkpoint.on_failure = continue a
  /// failure is a warning, unless the checkpoint is `needed`.
  void save(const CheckpointInfo& info, bool needed, const std::function<void()>& before);
  /// After every step: publishes a checkpoint that all ranks have written.
  void look_after();
  /// Waits for the one under way.
  void finish(bool needed);
  /// The state after so many steps is saved, or being saved.
  bool has(std::int64_t step) const { return saved_ == step; }
  void has_saved(std::int64_t step) { saved_ = step; }
  const SaveTotals& totals() const { return totals_; }
  /// Adds a line to the events, on rank 0; a failure is a warning.
  void note(nlohmann::ordered_json event) const;

 private:
  void guarded(std::int64_t step, bool needed, const std::function<void()>& f);
  void report(const SaveReport& report);

  const CheckpointDeck& deck_;
  Trainer& trainer_;
  const Communicator& world_;
  std::string events_;
  std::int64_t saved_ = -1;
  SaveTotals totals_;
};

}  // namespace flanmoe
