// Temporary memory of a kernel, given back when the scope ends.
#pragma once

#include "kernels/context.hpp"

namespace flanmoe {

class ScratchScope {
 public:
  explicit ScratchScope(KernelContext& context) : arena_(*context.scratch), mark_(arena_.mark()) {}
  ~ScratchScope() { arena_.release(mark_); }
  ScratchScope(const ScratchScope&) = delete;
  ScratchScope& operator=(const ScratchScope&) = delete;

  /// `count` uninitialised elements, 64-byte aligned.
  template <class T>
  T* take(std::int64_t count) {
    return arena_.allocate(dtype_of<T>::value, 1, count).template as<T>();
  }
  /// The same in bytes.
  void* take_bytes(std::size_t count) { return take<std::int32_t>(std::int64_t(count + 3) / 4); }

 private:
  Arena& arena_;
  std::size_t mark_;
};

/// What take<T>(count) uses of an arena.
template <class T>
std::size_t scratch_size(std::int64_t count) {
  return (std::size_t(count) * sizeof(T) + 63) / 64 * 64;
}

}  // namespace flanmoe
