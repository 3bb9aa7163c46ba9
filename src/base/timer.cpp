#include "base/timer.hpp"

namespace flanmoe {
namespace {

struct Clock {
  std::array<double, int(Part::count)> seconds{};
  Part current = Part::other;
  double since = seconds_now();
};

Clock& clock_of_thread() {
  thread_local Clock clock;
  return clock;
}

void switch_to(Part part) {
  Clock& clock = clock_of_thread();
  const double now = seconds_now();
  clock.seconds[std::size_t(clock.current)] += now - clock.since;
  clock.current = part;
  clock.since = now;
}

}  // namespace

const char* name_of(Part part) {
  switch (part) {
    case Part::other: return "other";
    case Part::attention: return "attention";
    case Part::dense_ffn: return "dense_ffn";
    case Part::experts: return "experts";
    case Part::routing: return "routing";
    case Part::logits: return "logits";
    case Part::optimizer: return "optimizer";
    case Part::communication: return "communication";
    case Part::data: return "data";
    case Part::count: break;
  }
  return "?";
}

std::array<double, int(Part::count)> part_seconds() {
  switch_to(clock_of_thread().current);
  return clock_of_thread().seconds;
}

void reset_part_seconds() {
  switch_to(clock_of_thread().current);
  clock_of_thread().seconds.fill(0.0);
}

void restore_part_seconds(const std::array<double, int(Part::count)>& seconds) {
  switch_to(clock_of_thread().current);
  clock_of_thread().seconds = seconds;
}

PartScope::PartScope(Part part) : outer_(clock_of_thread().current) { switch_to(part); }
PartScope::~PartScope() { switch_to(outer_); }

}  // namespace flanmoe
