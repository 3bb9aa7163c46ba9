#include "parallel/stop.hpp"

#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <csignal>
#include <cstdlib>
#include <cstring>
#include <ctime>

#include "base/error.hpp"
#include "base/timer.hpp"

namespace flanmoe {
namespace {

std::atomic<int> g_signal{0};
std::atomic<std::int64_t> g_first_ms{0};  // when it came, on the monotonic clock; 0: it did not
static_assert(std::atomic<std::int64_t>::is_always_lock_free, "a signal handler may only touch lock-free atomics");

std::int64_t monotonic_ms() {
  timespec now{};
  clock_gettime(CLOCK_MONOTONIC, &now);
  return std::int64_t(now.tv_sec) * 1000 + now.tv_nsec / 1000000 + 1;
}

/// Does only what POSIX allows in a signal handler.
void remember(int signal) {
  const int error = errno;
  std::int64_t first = 0;
  const std::int64_t now = monotonic_ms();
  if (g_first_ms.compare_exchange_strong(first, now)) {
    g_signal.store(signal, std::memory_order_relaxed);
  } else if (now - first >= StopSignals::kSameRequestSeconds * 1000) {
    static constexpr char kText[] = "flanmoe: a second signal: ended at once; published checkpoints stay\n";
    [[maybe_unused]] const auto written = write(STDERR_FILENO, kText, sizeof kText - 1);
    std::signal(signal, SIG_DFL);
    std::raise(signal);  // comes when this returns: until then the signal is blocked
  }
  errno = error;
}

}  // namespace

StopSignals::StopSignals() {
  g_signal.store(0);
  g_first_ms.store(0);
  struct sigaction action {};
  action.sa_handler = remember;
  action.sa_flags = SA_RESTART;  // file and network calls go on as if nothing had happened
  for (const int signal : {SIGTERM, SIGUSR1}) {
    FLANMOE_EXPECT(sigaction(signal, &action, nullptr) == 0, "signal {} cannot be caught", signal);
  }
}

StopSignals::~StopSignals() {
  for (const int signal : {SIGTERM, SIGUSR1}) std::signal(signal, SIG_DFL);
}

const char* stop_signal() {
  switch (g_signal.load(std::memory_order_relaxed)) {
    case 0: return nullptr;
    case SIGUSR1: return "SIGUSR1";
    default: return "SIGTERM";
  }
}

double end_of_job() {
  const char* text = std::getenv("SLURM_JOB_END_TIME");
  return text == nullptr ? 0 : std::strtod(text, nullptr);
}

StopRequest::StopRequest(const RunDeck& run) {
  if (run.stop_after_minutes > 0) after_ = seconds_now() + run.stop_after_minutes * 60;
  if (const double end = end_of_job(); run.stop_before_minutes > 0 && end > 0) {
    before_ = end - run.stop_before_minutes * 60;
  }
}

bool StopRequest::made() const {
  return stop_signal() != nullptr || (after_ > 0 && seconds_now() > after_) ||
         (before_ > 0 && double(std::time(nullptr)) > before_);
}

bool StopRequest::made_anywhere(const Communicator& world) const {
  return world.all_reduce(std::int32_t(made() ? 1 : 0), ReduceOp::max) != 0;
}

}  // namespace flanmoe
