// Names a collective that hangs, then ends all ranks.
#pragma once

#include <chrono>
#include <string>

namespace flanmoe {

/// A thread that watches the collective under way on this rank. When one takes longer than the limit it prints rank,
/// host, operation, communicator and seconds, and calls MPI_Abort with exit code 1. limit 0: no watchdog.
class Watchdog {
 public:
  explicit Watchdog(std::chrono::seconds limit);
  ~Watchdog();
  Watchdog(const Watchdog&) = delete;
  Watchdog& operator=(const Watchdog&) = delete;
};

/// Marks a collective as under way for the time of its scope; used by Communicator and by parallel HDF5 calls.
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
