// Stopping early: a signal or the clock asks on some rank, all ranks finish what they are at, leave what the same
// command needs to go on, and end with code 75.
#pragma once

#include "deck/deck.hpp"
#include "parallel/communicator.hpp"

namespace flanmoe {

/// What a stage came to.
enum class Outcome {
  done,
  stopped,  // early, as asked; the same command goes on
};

/// While it lives, the first SIGTERM or SIGUSR1 is remembered instead of ending the process; a second one ends it at
/// once. A batch system may tell one request twice, to a rank and through its launcher: what comes within
/// kSameRequestSeconds of the first is the same request. One at a time.
class StopSignals {
 public:
  static constexpr int kSameRequestSeconds = 2;

  StopSignals();
  ~StopSignals();
  StopSignals(const StopSignals&) = delete;
  StopSignals& operator=(const StopSignals&) = delete;
};

/// The signal that came ("SIGTERM", "SIGUSR1"), or null.
const char* stop_signal();

/// Seconds since 1970 at which the batch system ends the job: SLURM_JOB_END_TIME; 0 when it is not set.
double end_of_job();

/// Why a stage ends early: a signal, run.stop_after_minutes from the making of this on, or run.stop_before_minutes.
class StopRequest {
 public:
  explicit StopRequest(const RunDeck& run);
  /// On this rank.
  bool made() const;
  /// On any rank. Collective.
  bool made_anywhere(const Communicator& world) const;

 private:
  double after_ = 0;   // s on the steady clock; 0: no limit
  double before_ = 0;  // s since 1970; 0: no limit
};

}  // namespace flanmoe
