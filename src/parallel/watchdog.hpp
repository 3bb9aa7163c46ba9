// Names a collective that hangs, then ends all ranks.
#pragma once

#include <chrono>
#include <memory>
#include <string>

namespace flanmoe {

/// A thread that watches the collective under way on this rank. When one takes longer than the limit it prints rank,
/// host, operation, communicator and seconds, and calls MPI_Abort with exit code 1. limit 0: no watchdog. Made after
/// MpiEnvironment and destroyed before it.
class Watchdog {
 public:
  explicit Watchdog(std::chrono::seconds limit);
  ~Watchdog();
  Watchdog(const Watchdog&) = delete;
  Watchdog& operator=(const Watchdog&) = delete;

 private:
  struct State;
  std::unique_ptr<State> state_;
};

/// Marks a collective as under way for the time of its scope; used by Communicator and by parallel HDF5 calls.
/// Scopes nest; the innermost one that is over the limit is named. Collectives are called by one thread.
class CollectiveScope {
 public:
  CollectiveScope(const char* operation, const std::string& communicator);
  ~CollectiveScope();
  CollectiveScope(const CollectiveScope&) = delete;
  CollectiveScope& operator=(const CollectiveScope&) = delete;
};

/// Seconds this rank has spent inside collectives since the program started.
double seconds_in_collectives();

}  // namespace flanmoe
