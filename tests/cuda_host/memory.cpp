// Memory of the emulated device. Each allocation ends at a closed page and begins behind one, is closed to the host
// while no work of a stream runs, and is closed for ever once freed: addresses are never used again.
#include <signal.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cstdlib>
#include <map>

#include "runtime.hpp"

namespace flanmoe::emulation {
namespace {

constexpr std::size_t kPage = 4096;
// Of cudaMalloc 256. Here less, so that the closed page comes right behind the last byte; vector accesses are of 16.
constexpr std::size_t kAlignment = 16;
constexpr unsigned char kGuard = 0xa5;

struct Allocation {
  char* pages = nullptr;   // with the closed pages around
  std::size_t inside = 0;  // bytes of open pages
  std::size_t bytes = 0;   // asked for
  bool pinned = false, freed = false;

  char* open() const { return pages + kPage; }
  bool holds(const char* at) const { return at >= pages && at < pages + inside + 2 * kPage; }
};

struct Heap {
  std::map<const char*, Allocation> by_address;
  int open = 0;  // how many OpenMemory live
};
Heap& heap() {
  static auto* all = new Heap;  // outlives static objects that free memory
  return *all;
}

const Allocation* find(const void* at) {
  const auto& all = heap().by_address;
  const char* address = static_cast<const char*>(at);
  auto next = all.upper_bound(address + kPage);  // an access before the begin belongs to it too
  while (next != all.begin()) {
    --next;
    if (next->second.holds(address)) return &next->second;
    if (next->first + kPage < address) return nullptr;
  }
  return nullptr;
}

/// The end of a program that touched what it may not: says what it was. Runs on its own stack, since the fault may be
/// that of a stack.
void on_fault(int signal, siginfo_t* info, void* /*context*/) {
  const char* at = static_cast<const char*>(info->si_addr);
  const std::string who = running_thread();
  std::string message = describe_shared(at);
  if (message.empty()) message = fmt::format("signal {} at address {}", signal, info->si_addr);
  for (const auto& [begin, a] : heap().by_address) {
    if (!a.holds(at)) continue;
    const std::ptrdiff_t offset = at - begin;
    const std::string where =
        fmt::format("byte {} of {} bytes of {} memory", offset, a.bytes, a.pinned ? "pinned" : "device");
    if (a.freed) {
      message = fmt::format("{} touched after it was freed", where);
    } else if (offset >= 0 && offset < std::ptrdiff_t(a.bytes) && heap().open == 0) {
      message = fmt::format("the host touched {}", where);
    } else {
      message = fmt::format("{} touched, which is outside", where);
    }
  }
  if (!who.empty()) message += "; by " + who;
  message = fmt::format("emulation: {}; seed {}\n", message, seed());
  [[maybe_unused]] const auto written = write(STDERR_FILENO, message.data(), message.size());
  ::signal(signal, SIG_DFL);
  std::abort();
}

void install_handler() {
  static const bool once = [] {
    static char stack[1 << 16];
    const stack_t alternative{.ss_sp = stack, .ss_flags = 0, .ss_size = sizeof stack};
    sigaltstack(&alternative, nullptr);
    struct sigaction action {};
    action.sa_sigaction = on_fault;
    action.sa_flags = SA_SIGINFO | SA_ONSTACK;
    sigaction(SIGSEGV, &action, nullptr);
    sigaction(SIGBUS, &action, nullptr);
    return true;
  }();
  (void)once;
}

void* allocate(std::size_t bytes, bool pinned) {
  install_handler();
  Allocation a;
  a.bytes = bytes;
  a.pinned = pinned;
  const std::size_t rounded = (bytes + kAlignment - 1) / kAlignment * kAlignment;
  a.inside = (rounded + kPage - 1) / kPage * kPage;
  void* memory = mmap(nullptr, a.inside + 2 * kPage, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (memory == MAP_FAILED) return nullptr;
  a.pages = static_cast<char*>(memory);
  mprotect(a.open(), a.inside, PROT_READ | PROT_WRITE);
  char* begin = a.open() + a.inside - rounded;
  std::memset(a.open(), kGuard, a.inside);
  std::memset(begin, 0xff, bytes);  // NaN in every floating type: what nobody wrote spoils every result
  if (!pinned && heap().open == 0) mprotect(a.open(), a.inside, PROT_NONE);
  heap().by_address[begin] = a;
  return begin;
}

/// Marks them again when they are not as they were: a fault is told once, not again when the memory is freed.
void check_guards_of(const char* begin, const Allocation& a) {
  bool hold = true;
  const auto check = [&](char* from, const char* to) {
    for (; from < to; ++from) {
      hold = hold && static_cast<unsigned char>(*from) == kGuard;
      *from = static_cast<char>(kGuard);
    }
  };
  check(a.open(), begin);
  check(a.open() + (begin - a.open()) + a.bytes, a.open() + a.inside);
  if (hold) return;
  throw Fault(fmt::format("something wrote before or behind {} bytes of device memory; seed {}", a.bytes, seed()));
}

void release(void* at, bool pinned) {
  if (at == nullptr) return;
  const auto found = heap().by_address.find(static_cast<const char*>(at));
  if (found == heap().by_address.end() || found->second.freed || found->second.pinned != pinned) {
    throw Fault(fmt::format("freed what was not allocated, or freed twice; seed {}", seed()));
  }
  Allocation& a = found->second;
  {
    const OpenMemory open;
    check_guards_of(found->first, a);
  }
  mmap(a.pages, a.inside + 2 * kPage, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED, -1, 0);
  a.freed = true;
}

void protect_all(int protection) {
  for (const auto& [begin, a] : heap().by_address) {
    if (!a.pinned && !a.freed) mprotect(a.open(), a.inside, protection);
  }
}

void expect_inside(const void* at, std::size_t bytes, bool pinned, const char* what) {
  if (bytes == 0) return;
  const Allocation* a = find(at);
  const char* address = static_cast<const char*>(at);
  const bool inside = a != nullptr && !a->freed && a->pinned == pinned &&
                      address >= a->open() + a->inside - (a->bytes + kAlignment - 1) / kAlignment * kAlignment &&
                      address + bytes <= a->open() + a->inside;
  if (!inside) {
    throw Fault(fmt::format("{}: {} bytes at {} are not {} memory; seed {}", what, bytes, at,
                            pinned ? "pinned" : "device", seed()));
  }
}

}  // namespace

OpenMemory::OpenMemory() {
  if (heap().open++ == 0) protect_all(PROT_READ | PROT_WRITE);
}
OpenMemory::~OpenMemory() {
  if (--heap().open == 0) protect_all(PROT_NONE);
}

void expect_device(const void* at, std::size_t bytes, const char* what) { expect_inside(at, bytes, false, what); }
void expect_pinned(const void* at, std::size_t bytes, const char* what) { expect_inside(at, bytes, true, what); }

void check_guards() {
  for (const auto& [begin, a] : heap().by_address) {
    if (!a.freed && !a.pinned) check_guards_of(begin, a);
  }
}

}  // namespace flanmoe::emulation

cudaError_t cudaMalloc(void** at, std::size_t bytes) {
  *at = flanmoe::emulation::allocate(bytes, false);
  return *at == nullptr ? cudaErrorMemoryAllocation : cudaSuccess;
}
// CUDA waits here for the device. The program must not count on that, so work that is still queued finds the memory
// gone.
cudaError_t cudaFree(void* at) {
  flanmoe::emulation::release(at, false);
  return cudaSuccess;
}
cudaError_t cudaMallocHost(void** at, std::size_t bytes) {
  *at = flanmoe::emulation::allocate(bytes, true);
  return *at == nullptr ? cudaErrorMemoryAllocation : cudaSuccess;
}
cudaError_t cudaFreeHost(void* at) {
  flanmoe::emulation::release(at, true);
  return cudaSuccess;
}
