// One block of CUDA threads on the host: a fiber a thread, which runs until it waits at a barrier or for its warp.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <functional>
#include <string>
#include <vector>

#include "base/error.hpp"

struct uint3 {
  unsigned x, y, z;
};
struct dim3 {
  unsigned x = 1, y = 1, z = 1;
  constexpr dim3(unsigned x_in = 1, unsigned y_in = 1, unsigned z_in = 1) : x(x_in), y(y_in), z(z_in) {}
};
/// Of the thread that runs now.
extern uint3 threadIdx, blockIdx;
extern dim3 blockDim, gridDim;

namespace flanmoe::emulation {

/// The least of the architectures that flanmoe is built for (8.0: 163 KiB a block).
inline constexpr int kMostSharedBytes = 163 * 1024;
inline constexpr int kMostThreads = 1024;
inline constexpr int kLanes = 32;

/// A line of a source, by default the one that calls. (std::source_location is not in clang 14.)
struct Where {
  const char* file = "";
  unsigned line = 0;
  static constexpr Where current(const char* file = __builtin_FILE(), unsigned line = __builtin_LINE()) {
    return {file, line};
  }
};

/// What a kernel did that no kernel may do. Thrown where the host waits for the stream.
class Fault : public LogicError {
 public:
  using LogicError::LogicError;
};

/// The seed of every order that is free: of threads, of blocks, of streams (FLANMOE_EMULATION_SEED, else 1).
std::uint64_t seed();
/// The next of its random numbers, below `bound`.
std::uint32_t random_below(std::uint32_t bound);

/// Runs `thread` in every thread of every block. Throws Fault.
void run_grid(dim3 grid, dim3 block, std::size_t shared_bytes, const std::function<void()>& thread);
/// Where in the grid the running thread is, for messages; empty outside of kernels.
std::string running_thread();

/// What is at an address, when that is in or around shared memory; else empty.
std::string describe_shared(const void* at);

// ---- called by running threads ----
enum class Vote { none, count, any, all };
int barrier(Vote vote, int predicate, Where where);
int lane();
unsigned char* shared_memory();

/// What all lanes of a warp operation brought, by lane; null where a lane is not in the mask.
struct WarpOperands {
  unsigned mask;
  std::array<const void*, kLanes> in;
  std::array<void*, kLanes> out;
};
/// Waits for all lanes of the mask, which must come to the same place with the same mask; the last one runs `combine`.
void warp_collective(unsigned mask, const void* in, void* out, void (*combine)(const WarpOperands&), Where where);
[[noreturn]] void fault(const std::string& what, Where where);

inline void warp_barrier(unsigned mask, Where where) {
  warp_collective(
      mask, nullptr, nullptr, [](const WarpOperands&) {}, where);
}

template <class T>
T shuffle(unsigned mask, T value, int from, Where where) {
  static_assert(std::is_arithmetic_v<T> && (sizeof(T) == 4 || sizeof(T) == 8), "CUDA shuffles words of 4 or 8 bytes");
  struct In {
    T value;
    int from;
    const Where* where;
  };
  const In in{value, from, &where};
  T out;
  warp_collective(
      mask, &in, &out,
      [](const WarpOperands& o) {
        for (int to = 0; to < kLanes; ++to) {
          if ((o.mask >> unsigned(to) & 1U) == 0) continue;
          const In& mine = *static_cast<const In*>(o.in[std::size_t(to)]);
          if (mine.from < 0 || mine.from >= kLanes || (o.mask >> unsigned(mine.from) & 1U) == 0) {
            fault(fmt::format("a shuffle with mask {:#x} in which lane {} reads lane {}", o.mask, to, mine.from),
                  *mine.where);
          }
          *static_cast<T*>(o.out[std::size_t(to)]) = static_cast<const In*>(o.in[std::size_t(mine.from)])->value;
        }
      },
      where);
  return out;
}
unsigned ballot(unsigned mask, int predicate, Where where);
unsigned match(unsigned mask, std::uint64_t value, Where where);

/// D = A . B + C of one warp, m16n8k16 in bf16 with fp32 sums: the fragments of PTX's mma.
void mma_bf16(float (&c)[4], const std::uint32_t (&a)[4], const std::uint32_t (&b)[2], Where where);

/// Copies that have begun: they happen as late as they may, when the thread waits for them.
void copy_begin(void* to, const void* from, std::size_t bytes);
void copy_commit();
void copy_wait(int groups_left);

}  // namespace flanmoe::emulation
