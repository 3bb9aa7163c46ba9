// One-dimensional HDF5 tables: written in chunks, read in cached blocks of one chunk.
#pragma once

#include <algorithm>
#include <cstdint>
#include <functional>
#include <span>
#include <string>
#include <type_traits>
#include <unordered_map>
#include <vector>

#include "base/hdf5.hpp"
#include "data/chunk_io.hpp"

namespace flanmoe {

/// Appends elements; whole chunks are written as they fill.
template <class T>
class AppendTable {
 public:
  static_assert(std::is_trivially_copyable_v<T>);
  AppendTable(hid_t file, const std::string& name, hid_t file_type, hid_t memory_type, std::int64_t chunk)
      : dataset_(ChunkedDataset::create(file, name, file_type, memory_type, chunk)) {
    buffer_.reserve(std::size_t(chunk));
  }
  void add(const T& value) {
    buffer_.push_back(value);
    if (std::int64_t(buffer_.size()) == dataset_.chunk()) flush();
  }
  void add(std::span<const T> values) {
    for (const T& value : values) add(value);
  }
  /// Writes what is left; nothing may be added behind a chunk that is not full.
  void flush() {
    if (!buffer_.empty()) dataset_.append_chunk(buffer_.data(), std::int64_t(buffer_.size()));
    buffer_.clear();
  }
  /// Elements added so far.
  std::int64_t size() const { return dataset_.size() + std::int64_t(buffer_.size()); }

 private:
  ChunkedDataset dataset_;
  std::vector<T> buffer_;
};

/// Reads elements on demand and keeps at most `cache_bytes` of blocks, least recently used out first.
/// `check(first, block)` sees every block once it is read and throws when a value is impossible.
template <class T>
class BlockTable {
 public:
  static_assert(std::is_trivially_copyable_v<T>);
  using Check = std::function<void(std::int64_t first, std::span<const T> block)>;

  BlockTable() = default;
  /// `where` begins every error message ("shard PATH"). Throws when the extent is not `expected` elements.
  BlockTable(hid_t file, const std::string& where, const std::string& name, hid_t memory_type, std::int64_t expected,
             std::size_t cache_bytes, Check check)
      : what_(where + ": table '" + name + "'"),
        dataset_(ChunkedDataset::open(file, name, memory_type, what_)),
        check_(std::move(check)) {
    if (size() != expected) fail("{} has {} elements, the header says {}", what_, size(), expected);
    capacity_ = std::max<std::size_t>(2, cache_bytes / (std::size_t(dataset_.chunk()) * sizeof(T)));
  }

  std::int64_t size() const { return dataset_.size(); }
  T at(std::int64_t i) {
    FLANMOE_EXPECT(i >= 0 && i < size(), "{}: element {} of {}", what_, i, size());
    return block(i / dataset_.chunk())[std::size_t(i % dataset_.chunk())];
  }
  void copy(std::int64_t first, std::span<T> out) {
    const auto count = std::int64_t(out.size());
    FLANMOE_EXPECT(first >= 0 && first + count <= size(), "{}: elements [{}, {}) of {}", what_, first, first + count,
                   size());
    for (std::int64_t done = 0; done < count;) {
      const std::int64_t at = first + done, inside = at % dataset_.chunk();
      const std::int64_t n = std::min(count - done, dataset_.chunk() - inside);
      const std::vector<T>& values = block(at / dataset_.chunk());
      std::copy_n(values.begin() + inside, n, out.begin() + done);
      done += n;
    }
  }

 private:
  struct Slot {
    std::int64_t block = -1;
    std::uint64_t used = 0;
    std::vector<T> values;
  };

  const std::vector<T>& block(std::int64_t b) {
    if (last_ < slots_.size() && slots_[last_].block == b) return slots_[last_].values;
    auto found = where_.find(b);
    if (found == where_.end()) found = where_.emplace(b, load(b)).first;
    last_ = found->second;
    slots_[last_].used = ++clock_;
    return slots_[last_].values;
  }

  /// Reads a block into a slot of its own or that of the block not used for longest.
  std::size_t load(std::int64_t b) {
    const std::int64_t first = b * dataset_.chunk();
    std::vector<T> values(std::size_t(std::min(dataset_.chunk(), size() - first)));
    {
      const std::lock_guard lock(hdf5_mutex());
      dataset_.read_chunk(b, values.data(), std::int64_t(values.size()));
    }
    if (check_) check_(first, values);
    std::size_t slot = slots_.size();
    if (slot < capacity_) {
      slots_.emplace_back();
    } else {
      const auto older = [](const Slot& x, const Slot& y) { return x.used < y.used; };
      slot = std::size_t(std::min_element(slots_.begin(), slots_.end(), older) - slots_.begin());
      where_.erase(slots_[slot].block);
    }
    slots_[slot] = {b, 0, std::move(values)};
    return slot;
  }

  std::string what_;
  ChunkedDataset dataset_;
  std::size_t capacity_ = 2, last_ = 0;
  std::uint64_t clock_ = 0;
  Check check_;
  std::vector<Slot> slots_;
  std::unordered_map<std::int64_t, std::size_t> where_;
};

}  // namespace flanmoe
