#include "train/stop.hpp"

#include <atomic>
#include <csignal>

#include "base/error.hpp"

namespace flanmoe {
namespace {

std::atomic<int> g_signal{0};
static_assert(std::atomic<int>::is_always_lock_free, "a signal handler may only touch lock-free atomics");

void remember(int signal) { g_signal.store(signal, std::memory_order_relaxed); }

}  // namespace

StopSignals::StopSignals() {
  g_signal.store(0);
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

const char* StopSignals::received() const {
  switch (g_signal.load(std::memory_order_relaxed)) {
    case 0: return nullptr;
    case SIGUSR1: return "SIGUSR1";
    default: return "SIGTERM";
  }
}

}  // namespace flanmoe
