// Stopping early: a signal or the clock asks, the loop finishes the step, writes a checkpoint and ends with code 75.
#pragma once

#include <string>

namespace flanmoe {

/// While it lives, SIGTERM and SIGUSR1 are remembered instead of ending the process. One at a time.
class StopSignals {
 public:
  StopSignals();
  ~StopSignals();
  StopSignals(const StopSignals&) = delete;
  StopSignals& operator=(const StopSignals&) = delete;
  /// The signal that came ("SIGTERM", "SIGUSR1"), or null.
  const char* received() const;
};

}  // namespace flanmoe
