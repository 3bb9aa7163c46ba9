// One-dimensional HDF5 tables: written in chunks, read in cached blocks of one chunk.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <functional>
#include <span>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include "base/hdf5.hpp"
#include "data/block_pool.hpp"
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
    while (!values.empty()) {
      const auto room = std::size_t(dataset_.chunk()) - buffer_.size();
      const auto now = values.first(std::min(room, values.size()));
      buffer_.insert(buffer_.end(), now.begin(), now.end());
      values = values.subspan(now.size());
      if (now.size() == room) flush();
    }
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

/// Reads elements on demand, by blocks of one chunk that `pool` keeps while it has room.
/// `check(first, block)` sees every block once it is read and throws when a value is impossible.
template <class T>
class BlockTable {
 public:
  static_assert(std::is_trivially_copyable_v<T>);
  /// Gives the shard's file, opened again where it was closed meanwhile.
  using File = std::function<hid_t()>;
  using Check = std::function<void(std::int64_t first, std::span<const T> block)>;

  BlockTable() = default;
  /// `where` begins every error message ("shard PATH"). Throws when the extent is not `expected` elements.
  BlockTable(hid_t file, const std::string& where, const std::string& name, hid_t memory_type, std::int64_t expected,
             BlockPool& pool, File open_file, Check check)
      : what_(where + ": table '" + name + "'"),
        name_(name),
        dataset_(ChunkedDataset::open(file, name, memory_type, what_)),
        open_file_(std::move(open_file)),
        check_(std::move(check)),
        pool_(&pool),
        id_(pool.new_table()) {
    if (size() != expected) fail("{} has {} elements, the header says {}", what_, size(), expected);
  }

  std::int64_t size() const { return dataset_.size(); }
  /// Until the next block is read: nothing of the file stays open.
  void close() { dataset_.close(); }
  T at(std::int64_t i) {
    FLANMOE_EXPECT(i >= 0 && i < size(), "{}: element {} of {}", what_, i, size());
    T value;
    std::memcpy(&value, block(i / dataset_.chunk()) + std::size_t(i % dataset_.chunk()) * sizeof(T), sizeof(T));
    return value;
  }
  void copy(std::int64_t first, std::span<T> out) {
    const auto count = std::int64_t(out.size());
    FLANMOE_EXPECT(first >= 0 && first + count <= size(), "{}: elements [{}, {}) of {}", what_, first, first + count,
                   size());
    for (std::int64_t done = 0; done < count;) {
      const std::int64_t at = first + done, inside = at % dataset_.chunk();
      const std::int64_t n = std::min(count - done, dataset_.chunk() - inside);
      const std::byte* values = block(at / dataset_.chunk()) + std::size_t(inside) * sizeof(T);
      std::memcpy(out.data() + done, values, std::size_t(n) * sizeof(T));
      done += n;
    }
  }

 private:
  const std::byte* block(std::int64_t b) {
    const std::byte* found = pool_->find(id_, b);
    return found != nullptr ? found : load(b);
  }

  const std::byte* load(std::int64_t b) {
    const std::int64_t first = b * dataset_.chunk();
    std::vector<T> values(std::size_t(std::min(dataset_.chunk(), size() - first)));
    {
      const std::lock_guard lock(hdf5_mutex());
      const hid_t file = open_file_();
      if (!dataset_.is_open()) dataset_.open_again(file, name_);
      dataset_.read_chunk(b, values.data(), std::int64_t(values.size()));
    }
    if (check_) check_(first, values);
    const auto bytes = std::as_bytes(std::span(std::as_const(values)));
    return pool_->keep(id_, b, {bytes.begin(), bytes.end()});
  }

  std::string what_, name_;
  ChunkedDataset dataset_;
  File open_file_;
  Check check_;
  BlockPool* pool_ = nullptr;
  std::uint64_t id_ = 0;
};

}  // namespace flanmoe
