#include "tensor/arena.hpp"

#include <sys/mman.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <utility>

namespace flanmoe {
namespace {

constexpr std::size_t kAlignment = 64;

std::size_t aligned(std::size_t bytes) { return (bytes + kAlignment - 1) / kAlignment * kAlignment; }

void* take_pages(std::size_t bytes) {
  void* memory = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (memory == MAP_FAILED) return nullptr;
  madvise(memory, bytes, MADV_HUGEPAGE);  // best effort: fewer TLB misses on large matrices
  std::memset(memory, 0, bytes);          // touch every page now, not inside a step
  return memory;
}
void give_pages_back(void* memory, std::size_t bytes) { munmap(memory, bytes); }

}  // namespace

const MemorySource host_memory = {take_pages, give_pages_back};

Arena::Arena(std::string name, const MemorySource& source) : name_(std::move(name)), source_(&source) {}

Arena::~Arena() {
  if (base_ != nullptr) source_->give_back(base_, capacity_);
}

Arena::Arena(Arena&& other) noexcept
    : name_(std::move(other.name_)),
      source_(other.source_),
      base_(std::exchange(other.base_, nullptr)),
      capacity_(std::exchange(other.capacity_, 0)),
      used_(std::exchange(other.used_, 0)),
      high_water_(std::exchange(other.high_water_, 0)) {}

Arena& Arena::operator=(Arena&& other) noexcept {
  std::swap(name_, other.name_);
  std::swap(source_, other.source_);
  std::swap(base_, other.base_);
  std::swap(capacity_, other.capacity_);
  std::swap(used_, other.used_);
  std::swap(high_water_, other.high_water_);
  return *this;
}

Tensor Arena::allocate(DType dtype, std::int64_t rows, std::int64_t cols, std::int64_t batch) {
  FLANMOE_EXPECT(rows >= 0 && cols >= 0 && batch >= 0, "shape {} x {} x {} in arena {}", batch, rows, cols, name_);
  Tensor tensor{nullptr, dtype, batch, rows, cols, cols};
  const std::size_t bytes = aligned(tensor.bytes());
  if (committed()) {
    FLANMOE_EXPECT(used_ + bytes <= capacity_, "arena {} holds {} bytes, {} are used and {} more asked for", name_,
                   capacity_, used_, bytes);
    // An empty tensor keeps a non-null pointer only when there is memory to point at; it is "absent" otherwise.
    tensor.data = base_ + std::min(used_, capacity_ - kAlignment);
  }
  used_ += bytes;
  high_water_ = std::max(high_water_, used_);
  return tensor;
}

void Arena::commit() {
  FLANMOE_EXPECT(!committed(), "arena {} is committed already", name_);
  capacity_ = aligned(high_water_) + kAlignment;
  errno = 0;
  base_ = static_cast<char*>(source_->take(capacity_));
  if (base_ == nullptr) {
    const std::size_t wanted = std::exchange(capacity_, 0);
    fail("arena {} needs {} bytes of memory and the system does not give them: {}", name_, wanted,
         on_host() && errno != 0 ? std::strerror(errno) : "the device has too little");
  }
  used_ = 0;
}

void Arena::rewind() { used_ = 0; }

}  // namespace flanmoe
