// Where the time of a step goes. Parts are exclusive: a nested scope stops the clock of the outer one.
#pragma once

#include <array>
#include <chrono>

namespace flanmoe {

enum class Part : int { other, attention, dense_ffn, experts, routing, logits, optimizer, communication, data, count };
const char* name_of(Part part);

/// Seconds per part since the last reset, of the calling (main) thread.
std::array<double, int(Part::count)> part_seconds();
void reset_part_seconds();
/// Takes back what was counted since part_seconds() gave these.
void restore_part_seconds(const std::array<double, int(Part::count)>& seconds);

class PartScope {
 public:
  explicit PartScope(Part part);
  ~PartScope();
  PartScope(const PartScope&) = delete;
  PartScope& operator=(const PartScope&) = delete;

 private:
  Part outer_;
};

/// Wall-clock seconds since an arbitrary start.
inline double seconds_now() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

}  // namespace flanmoe
