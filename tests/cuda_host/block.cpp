#include "block.hpp"

#include <sys/mman.h>
#include <unistd.h>

#include <boost/context/fiber.hpp>
#include <cstdlib>
#include <exception>
#include <numeric>
#include <utility>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif

uint3 threadIdx{}, blockIdx{};
dim3 blockDim, gridDim;

namespace flanmoe::emulation {
namespace {

namespace context = boost::context;

/// Stacks are kept for the next thread: most run from end to end, one after another, on the same one.
class StackPool {
 public:
  // A page below each stack stays closed, so that an overflow faults.
  static constexpr std::size_t bytes = std::size_t{256} << 10, page = 4096;

  context::stack_context take() {
    if (free_.empty()) {
      void* memory =
          mmap(nullptr, bytes + page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
      if (memory == MAP_FAILED) fail("no memory for the stack of a thread");
      mprotect(memory, page, PROT_NONE);
      free_.push_back(static_cast<char*>(memory) + page);
    }
    context::stack_context stack;
    stack.size = bytes;
    stack.sp = free_.back() + bytes;
#if defined(__SANITIZE_ADDRESS__)
    ASAN_UNPOISON_MEMORY_REGION(free_.back(), bytes);  // a thread that a fault ended leaves marks
#endif
    free_.pop_back();
    return stack;
  }
  void give_back(const context::stack_context& stack) { free_.push_back(static_cast<char*>(stack.sp) - bytes); }

 private:
  std::vector<char*> free_;
};
StackPool stacks;

/// The address sanitizer follows changes of the stack when it is told of them.
struct StackBounds {
  const void* bottom = nullptr;
  std::size_t size = 0;
};
void before_switch([[maybe_unused]] void** keep, [[maybe_unused]] StackBounds to) {
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_start_switch_fiber(keep, to.bottom, to.size);
#endif
}
void after_switch([[maybe_unused]] void* keep, [[maybe_unused]] StackBounds* from) {
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(keep, from == nullptr ? nullptr : &from->bottom,
                                  from == nullptr ? nullptr : &from->size);
#endif
}

struct PooledStack {
  StackBounds* bounds;
  context::stack_context allocate() {
    const context::stack_context stack = stacks.take();
    *bounds = {static_cast<char*>(stack.sp) - stack.size, stack.size};
    return stack;
  }
  void deallocate(context::stack_context& stack) noexcept { stacks.give_back(stack); }
};

enum class State { ready, at_barrier, at_warp, ended };

struct Copy {
  void* to;
  const void* from;
  std::size_t bytes;
};

struct Thread {
  context::fiber fiber;
  StackBounds stack;
  State state = State::ready;
  uint3 index{};
  Where where;
  // At a barrier.
  Vote vote = Vote::none;
  int predicate = 0, result = 0;
  // At a warp operation.
  unsigned mask = 0;
  const void* in = nullptr;
  void* out = nullptr;
  // Copies by group; the last group is open.
  std::vector<std::vector<Copy>> copies;
};

std::string place(const Where& where) {
  const std::string file = where.file;
  return fmt::format("{}:{}", file.substr(file.rfind('/') + 1), where.line);
}

class Block {
 public:
  void run(const std::function<void()>& thread, unsigned count);
  Thread& current() { return threads_[current_]; }
  unsigned current_index() const { return unsigned(current_); }
  bool running() const { return running_; }
  /// Gives the processor to another thread; comes back when this one is ready.
  void suspend() {
    struct Switched {  // also when the thread is ended here, by an exception
      void* keep = nullptr;
      ~Switched() { after_switch(keep, nullptr); }
    } switched;
    before_switch(&switched.keep, host_stack_);
    back_ = std::move(back_).resume();
  }
  /// The threads of the running thread's warp that its mask names.
  Thread* lane_of_warp(unsigned lane) {
    const std::size_t i = current_ / kLanes * kLanes + lane;
    return i < threads_.size() ? &threads_[i] : nullptr;
  }
  void make_ready(Thread& thread) {
    thread.state = State::ready;
    ready_.push_back(std::size_t(&thread - threads_.data()));
  }

 private:
  void start(const std::function<void()>& thread, std::size_t i);
  void run_ready(const std::function<void()>& thread);
  void open_barrier();

  std::vector<Thread> threads_;
  std::vector<std::size_t> ready_;
  std::size_t current_ = 0, ended_ = 0;
  bool running_ = false;
  context::fiber back_;
  StackBounds host_stack_;
  std::exception_ptr error_;
};

void Block::start(const std::function<void()>& thread, std::size_t i) {
  Thread& t = threads_[i];
  t.fiber = context::fiber(std::allocator_arg, PooledStack{&t.stack}, [this, &thread, &t](context::fiber&& back) {
    after_switch(nullptr, &host_stack_);
    back_ = std::move(back);
    try {
      thread();
    } catch (const context::detail::forced_unwind&) {
      before_switch(nullptr, host_stack_);
      throw;
    } catch (...) {
      error_ = std::current_exception();
    }
    t.state = State::ended;
    ++ended_;
    before_switch(nullptr, host_stack_);
    return std::move(back_);
  });
}

void Block::run_ready(const std::function<void()>& thread) {
  while (!ready_.empty()) {
    const std::size_t pick = random_below(std::uint32_t(ready_.size()));
    std::swap(ready_[pick], ready_.back());
    current_ = ready_.back();
    ready_.pop_back();
    Thread& t = threads_[current_];
    threadIdx = t.index;
    if (!t.fiber) start(thread, current_);
    void* keep = nullptr;
    before_switch(&keep, t.stack);
    t.fiber = std::move(t.fiber).resume();
    after_switch(keep, nullptr);
    if (error_) std::rethrow_exception(std::exchange(error_, nullptr));
  }
}

/// Nobody can run: all threads wait at one barrier, or something is wrong.
void Block::open_barrier() {
  const Thread* first = nullptr;
  for (std::size_t i = 0; i < threads_.size(); ++i) {
    const Thread& t = threads_[i];
    current_ = i;  // for the message
    threadIdx = t.index;
    if (t.state == State::at_warp) {
      std::string missing;
      for (unsigned lane = 0; lane < kLanes; ++lane) {
        const Thread* other = lane_of_warp(lane);
        if ((t.mask >> lane & 1U) == 0 || (other->state == State::at_warp && other->mask == t.mask)) continue;
        missing += fmt::format(" {}{}", lane, other->state == State::ended ? " (ended)" : "");
      }
      fault(fmt::format("a warp operation with mask {:#x} waits for ever for lanes{}", t.mask, missing), t.where);
    }
    if (t.state == State::at_barrier && first == nullptr) first = &t;
  }
  for (std::size_t i = 0; i < threads_.size(); ++i) {
    const Thread& t = threads_[i];
    current_ = i;
    threadIdx = t.index;
    if (t.state == State::ended) {
      fault(fmt::format("a barrier that {} of {} threads never reach; one of them ended", ended_, threads_.size()),
            first->where);
    }
    if (t.where.line != first->where.line || std::strcmp(t.where.file, first->where.file) != 0) {
      fault(fmt::format("threads of a block wait at different barriers, {} and", place(first->where)), t.where);
    }
  }
  int count = 0;
  for (const Thread& t : threads_) count += t.predicate != 0 ? 1 : 0;
  for (Thread& t : threads_) {
    t.result = count;
    if (t.vote == Vote::any) t.result = count > 0 ? 1 : 0;
    if (t.vote == Vote::all) t.result = count == int(threads_.size()) ? 1 : 0;
    make_ready(t);
  }
}

void Block::run(const std::function<void()>& thread, unsigned count) {
  threads_.clear();
  threads_.resize(count);
  ready_.resize(count);
  std::iota(ready_.begin(), ready_.end(), std::size_t{0});
  for (unsigned i = 0; i < count; ++i) {
    threads_[i].index = {i % blockDim.x, i / blockDim.x % blockDim.y, i / (blockDim.x * blockDim.y)};
  }
  ended_ = 0;
  running_ = true;
  try {
    run_ready(thread);
    while (ended_ < threads_.size()) {
      open_barrier();
      run_ready(thread);
    }
  } catch (...) {
    for (Thread& t : threads_) {  // unwinds the stacks of the others
      if (!t.fiber) continue;
      void* keep = nullptr;
      before_switch(&keep, t.stack);
      t.fiber = {};
      after_switch(keep, nullptr);
    }
    threads_.clear();
    error_ = nullptr;
    running_ = false;
    throw;
  }
  running_ = false;
}

Block block;

/// Shared memory of a block. Behind its last byte comes a closed page, before its first one too.
class SharedMemory {
 public:
  static constexpr std::size_t page = 4096, room = (kMostSharedBytes + page - 1) / page * page;

  unsigned char* begin(std::size_t bytes) {
    if (base_ == nullptr) {
      void* memory =
          mmap(nullptr, room + 2 * page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
      if (memory == MAP_FAILED) fail("no memory for shared memory");
      base_ = static_cast<unsigned char*>(memory) + page;
      mprotect(base_ - page, page, PROT_NONE);
      mprotect(base_ + room, page, PROT_NONE);
    }
    bytes_ = bytes;
    at_ = base_ + room - (bytes + 15) / 16 * 16;
    band_ = std::min<std::size_t>(band, std::size_t(at_ - base_));
    std::memset(at_ - band_, 0xa5, band_);
    std::memset(at_ + bytes, 0xa5, std::size_t(base_ + room - at_) - bytes);
    return at_;
  }
  /// Before each block: what the one before it wrote is not there.
  void poison() { std::memset(at_, 0xff, bytes_); }
  unsigned char* at() const { return at_; }
  std::size_t bytes() const { return bytes_; }
  bool near(const unsigned char* p) const { return base_ != nullptr && p >= base_ - page && p < base_ + room + page; }
  bool guards_hold() const {
    for (const unsigned char* p = at_ - band_; p < at_; ++p) {
      if (*p != 0xa5) return false;
    }
    for (const unsigned char* p = at_ + bytes_; p < base_ + room; ++p) {
      if (*p != 0xa5) return false;
    }
    return true;
  }

 private:
  static constexpr std::size_t band = 256;
  unsigned char* base_ = nullptr;
  unsigned char* at_ = nullptr;
  std::size_t bytes_ = 0, band_ = 0;
};
SharedMemory shared;

std::uint64_t read_seed() {
  const char* text = std::getenv("FLANMOE_EMULATION_SEED");
  return text == nullptr ? 1 : std::strtoull(text, nullptr, 10);
}

}  // namespace

std::uint64_t seed() {
  static const std::uint64_t value = read_seed();
  return value;
}

std::uint32_t random_below(std::uint32_t bound) {
  static std::uint64_t state = seed() * 0x9e3779b97f4a7c15U + 0x2545f4914f6cdd1dU;
  state ^= state << 13U;
  state ^= state >> 7U;
  state ^= state << 17U;
  return std::uint32_t((std::uint64_t(std::uint32_t(state >> 32U)) * bound) >> 32U);
}

std::string running_thread() {
  if (!block.running()) return "";
  const auto& t = threadIdx;
  const auto& b = blockIdx;
  return fmt::format("thread ({}, {}, {}) of {} in block ({}, {}, {}) of {} x {} x {}", t.x, t.y, t.z,
                     blockDim.x * blockDim.y * blockDim.z, b.x, b.y, b.z, gridDim.x, gridDim.y, gridDim.z);
}

std::string describe_shared(const void* at) {
  if (!shared.near(static_cast<const unsigned char*>(at))) return "";
  return fmt::format("shared memory touched outside of the block's {} bytes", shared.bytes());
}

void fault(const std::string& what, Where where) {
  throw Fault(fmt::format("{} at {} ({}); seed {}", what, place(where), running_thread(), seed()));
}

void run_grid(dim3 grid, dim3 block_size, std::size_t shared_bytes, const std::function<void()>& thread) {
  gridDim = grid;
  blockDim = block_size;
  shared.begin(shared_bytes);
  std::vector<std::uint64_t> order(std::size_t(grid.x) * grid.y * grid.z);
  std::iota(order.begin(), order.end(), std::uint64_t{0});
  for (std::size_t left = order.size(); left > 0; --left) {
    std::swap(order[left - 1], order[random_below(std::uint32_t(left))]);
    const std::uint64_t i = order[left - 1];
    blockIdx = {unsigned(i % grid.x), unsigned(i / grid.x % grid.y), unsigned(i / grid.x / grid.y)};
    shared.poison();
    block.run(thread, block_size.x * block_size.y * block_size.z);
    if (!shared.guards_hold()) {
      throw Fault(
          fmt::format("a block wrote outside of its {} bytes of shared memory: block ({}, {}, {}) of {} x {} x "
                      "{}, {} threads; seed {}",
                      shared_bytes, blockIdx.x, blockIdx.y, blockIdx.z, grid.x, grid.y, grid.z,
                      block_size.x * block_size.y * block_size.z, seed()));
    }
  }
}

int barrier(Vote vote, int predicate, Where where) {
  Thread& t = block.current();
  t.state = State::at_barrier;
  t.where = where;
  t.vote = vote;
  t.predicate = predicate;
  block.suspend();
  return t.result;
}

int lane() { return int(block.current_index() % kLanes); }
unsigned char* shared_memory() { return shared.at(); }

void warp_collective(unsigned mask, const void* in, void* out, void (*combine)(const WarpOperands&), Where where) {
  Thread& own = block.current();
  if ((mask >> unsigned(lane()) & 1U) == 0) {
    fault(fmt::format("lane {} takes part in a warp operation whose mask {:#x} leaves it out", lane(), mask), where);
  }
  own.mask = mask;
  own.in = in;
  own.out = out;
  own.where = where;
  WarpOperands operands{mask, {}, {}};
  bool complete = true;
  for (unsigned l = 0; l < kLanes; ++l) {
    if ((mask >> l & 1U) == 0) continue;
    const Thread* t = block.lane_of_warp(l);
    if (t == nullptr) fault(fmt::format("mask {:#x} names lane {}, which has no thread", mask, l), where);
    if (t->state == State::ended)
      fault(fmt::format("mask {:#x} names lane {}, whose thread has ended", mask, l), where);
    if (t->state == State::at_warp) {
      if (t->mask != mask || t->where.line != where.line) {
        fault(fmt::format("lane {} waits at {} with mask {:#x}, lane {} comes with mask {:#x}", l, place(t->where),
                          t->mask, lane(), mask),
              where);
      }
    } else if (t != &own) {
      complete = false;
    }
    operands.in[l] = t->in;
    operands.out[l] = t->out;
  }
  if (!complete) {
    own.state = State::at_warp;
    block.suspend();
    return;
  }
  combine(operands);
  for (unsigned l = 0; l < kLanes; ++l) {
    if ((mask >> l & 1U) == 0) continue;
    Thread* t = block.lane_of_warp(l);
    if (t != &own) block.make_ready(*t);
  }
}

void copy_begin(void* to, const void* from, std::size_t bytes) {
  auto& groups = block.current().copies;
  if (groups.empty()) groups.emplace_back();
  groups.back().push_back({to, from, bytes});
}

void copy_commit() {
  auto& groups = block.current().copies;
  if (groups.empty()) groups.emplace_back();
  groups.emplace_back();
}

void copy_wait(int groups_left) {
  auto& groups = block.current().copies;
  while (std::int64_t(groups.size()) - 1 > groups_left) {
    for (const Copy& copy : groups.front()) std::memcpy(copy.to, copy.from, copy.bytes);
    groups.erase(groups.begin());
  }
}

}  // namespace flanmoe::emulation
