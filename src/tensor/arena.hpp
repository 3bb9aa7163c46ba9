// Memory for the steady-state step: one allocation per arena, sized before step 1.
#pragma once

#include <cstddef>
#include <string>

#include "tensor/tensor.hpp"

namespace flanmoe {

/// Where an arena takes its memory, in one piece: of the host, or of a device.
struct MemorySource {
  void* (*take)(std::size_t bytes);  // null when there is not so much; the content is undefined
  void (*give_back)(void* memory, std::size_t bytes);
};
/// Pages of the host, zero and touched, so that the announced size is the resident size.
extern const MemorySource host_memory;

/// A bump allocator that is used twice. First it only measures: allocate() returns views whose data is null and
/// counts bytes. commit() then takes the counted size in one piece, 64-byte aligned, and the same sequence of
/// allocate() calls returns real views. rewind() forgets what was handed out, so a layout can be laid again. The plan
/// stage prints measured() without ever committing.
class Arena {
 public:
  explicit Arena(std::string name, const MemorySource& source = host_memory);
  ~Arena();
  Arena(const Arena&) = delete;
  Arena& operator=(const Arena&) = delete;
  Arena(Arena&& other) noexcept;
  Arena& operator=(Arena&& other) noexcept;

  Tensor allocate(DType dtype, std::int64_t rows, std::int64_t cols, std::int64_t batch = 1);

  /// Allocates the measured size and switches to handing out memory. Throws Error naming the arena and the size when
  /// the memory cannot be had.
  void commit();
  bool committed() const { return base_ != nullptr; }
  void rewind();
  /// Position for temporary use: scratch taken after mark() is given back by release(mark).
  std::size_t mark() const { return used_; }
  void release(std::size_t mark) { used_ = mark; }

  const std::string& name() const { return name_; }
  bool on_host() const { return source_ == &host_memory; }
  std::size_t measured() const { return high_water_; }  // bytes
  std::size_t used() const { return used_; }            // bytes

 private:
  std::string name_;
  const MemorySource* source_ = &host_memory;
  char* base_ = nullptr;
  std::size_t capacity_ = 0;
  std::size_t used_ = 0;
  std::size_t high_water_ = 0;
};

}  // namespace flanmoe
