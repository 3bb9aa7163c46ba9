#include "parallel/watchdog.hpp"

#include <mpi.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <condition_variable>
#include <cstring>
#include <mutex>
#include <optional>
#include <thread>

#include "base/host.hpp"
#include "base/log.hpp"
#include "parallel/communicator.hpp"

namespace flanmoe {
namespace {

using Clock = std::chrono::steady_clock;

struct Frame {
  const char* operation = "";
  std::array<char, 32> communicator{};  // a copy: the communicator may be gone when the watchdog looks
  Clock::time_point since;
};

/// The collectives under way, outermost first. Entered by the thread that calls MPI, read by the watchdog; the lock is
/// free practically always, so a scope costs two uncontended atomic operations and two clock readings.
struct UnderWay {
  std::mutex mutex;
  std::array<Frame, 8> frames;
  std::size_t depth = 0;  // may exceed the number of frames; what is nested deeper is not named
  std::atomic<std::int64_t> nanoseconds{0};
};

UnderWay& under_way() {
  static UnderWay state;
  return state;
}

struct Hanging {
  std::string operation, communicator;
  double seconds = 0;
};

/// The innermost collective that has taken longer than the limit.
std::optional<Hanging> find_hanging(std::chrono::seconds limit) {
  UnderWay& state = under_way();
  const std::lock_guard lock(state.mutex);
  const auto now = Clock::now();
  for (std::size_t i = std::min(state.depth, state.frames.size()); i-- > 0;) {
    const Frame& frame = state.frames[i];
    if (now - frame.since > limit) {
      return Hanging{frame.operation, frame.communicator.data(),
                     std::chrono::duration<double>(now - frame.since).count()};
    }
  }
  return std::nullopt;
}

}  // namespace

CollectiveScope::CollectiveScope(const char* operation, const std::string& communicator) {
  UnderWay& state = under_way();
  const std::lock_guard lock(state.mutex);
  if (state.depth < state.frames.size()) {
    Frame& frame = state.frames[state.depth];
    frame.operation = operation;
    const std::size_t length = std::min(communicator.size(), frame.communicator.size() - 1);
    std::memcpy(frame.communicator.data(), communicator.data(), length);
    frame.communicator[length] = '\0';
    frame.since = Clock::now();
  }
  ++state.depth;
}

CollectiveScope::~CollectiveScope() {
  UnderWay& state = under_way();
  const std::lock_guard lock(state.mutex);
  --state.depth;
  if (state.depth == 0) {
    state.nanoseconds += std::chrono::nanoseconds(Clock::now() - state.frames[0].since).count();
  }
}

double seconds_in_collectives() { return 1e-9 * double(under_way().nanoseconds.load()); }

struct Watchdog::State {
  std::chrono::seconds limit;
  std::string who;  // "rank 3 on node17"
  std::mutex mutex;
  std::condition_variable wake;
  bool stop = false;
  std::thread thread;

  void watch() {
    const auto period = std::clamp<std::chrono::milliseconds>(limit / 8, std::chrono::milliseconds(100),
                                                              std::chrono::milliseconds(2000));
    std::unique_lock lock(mutex);
    while (!wake.wait_for(lock, period, [this] { return stop; })) {
      if (const auto hanging = find_hanging(limit)) end_all_ranks(*hanging);
    }
  }

  [[noreturn]] void end_all_ranks(const Hanging& hanging) const {
    put_error(
        fmt::format("{}: {} on communicator {} has not returned after {:.0f} s (limit {} s): a rank it waits for has "
                    "stopped or is far behind; ending all ranks",
                    who, hanging.operation, hanging.communicator, hanging.seconds, limit.count()));
    // Should MPI_Abort itself hang on the lock of the call that hangs, the default action of the alarm ends this
    // process, and the launcher then ends the others.
    alarm(10);
    MpiEnvironment::abort(1);
  }
};

Watchdog::Watchdog(std::chrono::seconds limit) {
  if (limit.count() <= 0) return;
  state_ = std::make_unique<State>();
  state_->limit = limit;
  state_->who = fmt::format("rank {} on {}", MpiEnvironment::world_rank(), host_name());
  state_->thread = std::thread([state = state_.get()] { state->watch(); });
}

Watchdog::~Watchdog() {
  if (!state_) return;
  {
    const std::lock_guard lock(state_->mutex);
    state_->stop = true;
  }
  state_->wake.notify_one();
  state_->thread.join();
}

}  // namespace flanmoe
