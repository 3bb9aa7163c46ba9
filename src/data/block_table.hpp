// One-dimensional HDF5 tables: written in chunks, read in cached blocks of one chunk. Every chunk carries a Fletcher-32
// checksum, which HDF5 verifies when the chunk is read.
#pragma once

#include <algorithm>
#include <cstdint>
#include <functional>
#include <span>
#include <string>
#include <unordered_map>
#include <vector>

#include "base/hdf5.hpp"

namespace flanmoe {

/// Appends elements to an extensible chunked dataset; whole chunks are written as they fill. `T` is laid out in memory
/// as `memory_type` says.
template <class T>
class AppendTable {
 public:
  AppendTable(hid_t file, const std::string& name, hid_t file_type, hid_t memory_type, std::int64_t chunk)
      : name_(name), memory_type_(memory_type), chunk_(chunk) {
    const hsize_t none = 0, unlimited = H5S_UNLIMITED, chunk_size = hsize_t(chunk);
    const H5Space space(H5Screate_simple(1, &none, &unlimited), name);
    const H5Property create(H5Pcreate(H5P_DATASET_CREATE), name);
    h5_check(H5Pset_chunk(create.get(), 1, &chunk_size), name);
    h5_check(H5Pset_fletcher32(create.get()), name);
    const H5Property access(H5Pcreate(H5P_DATASET_ACCESS), name);
    h5_check(H5Pset_chunk_cache(access.get(), 1, 0, 1.0), name);
    dataset_ = H5Dataset(
        H5Dcreate2(file, name.c_str(), file_type, space.get(), H5P_DEFAULT, create.get(), access.get()), name);
    buffer_.reserve(std::size_t(chunk));
  }
  void add(const T& value) {
    buffer_.push_back(value);
    if (std::int64_t(buffer_.size()) == chunk_) flush();
  }
  void add(std::span<const T> values) {
    for (const T& value : values) add(value);
  }
  void flush() {
    if (buffer_.empty()) return;
    const hsize_t first = hsize_t(written_), count = buffer_.size(), total = first + count;
    h5_check(H5Dset_extent(dataset_.get(), &total), name_);
    const H5Space file_space(H5Dget_space(dataset_.get()), name_);
    h5_check(H5Sselect_hyperslab(file_space.get(), H5S_SELECT_SET, &first, nullptr, &count, nullptr), name_);
    const H5Space memory_space(H5Screate_simple(1, &count, nullptr), name_);
    h5_check(H5Dwrite(dataset_.get(), memory_type_, memory_space.get(), file_space.get(), H5P_DEFAULT, buffer_.data()),
             name_);
    written_ = std::int64_t(total);
    buffer_.clear();
  }
  /// Elements added so far.
  std::int64_t size() const { return written_ + std::int64_t(buffer_.size()); }

 private:
  std::string name_;
  hid_t memory_type_;
  std::int64_t chunk_;
  H5Dataset dataset_;
  std::vector<T> buffer_;
  std::int64_t written_ = 0;
};

/// Reads elements of a chunked dataset on demand and keeps at most `cache_bytes` of blocks, least recently used out
/// first. `check(first, block)` sees every block once it is read and throws when a value is impossible.
template <class T>
class BlockTable {
 public:
  using Check = std::function<void(std::int64_t first, std::span<const T> block)>;

  BlockTable() = default;
  /// `where` begins every error message ("shard PATH"). Throws when the extent is not `expected` elements.
  BlockTable(hid_t file, const std::string& where, const std::string& name, hid_t memory_type, std::int64_t expected,
             std::size_t cache_bytes, Check check)
      : what_(where + ": table '" + name + "'"), memory_type_(memory_type), size_(expected), check_(std::move(check)) {
    const H5Property access(H5Pcreate(H5P_DATASET_ACCESS), what_);
    // Blocks are cached here; a second cache inside HDF5 would only cost memory.
    h5_check(H5Pset_chunk_cache(access.get(), 1, 0, 1.0), what_);
    dataset_ = H5Dataset(H5Dopen2(file, name.c_str(), access.get()), what_);
    const H5Space space(H5Dget_space(dataset_.get()), what_);
    hsize_t extent = 0, chunk = 0;
    if (H5Sget_simple_extent_ndims(space.get()) != 1) fail("{} must have one dimension", what_);
    H5Sget_simple_extent_dims(space.get(), &extent, nullptr);
    if (std::int64_t(extent) != expected) fail("{} has {} elements, the header says {}", what_, extent, expected);
    const H5Property create(H5Dget_create_plist(dataset_.get()), what_);
    if (H5Pget_layout(create.get()) != H5D_CHUNKED || H5Pget_chunk(create.get(), 1, &chunk) != 1 || chunk == 0) {
      fail("{} is not chunked", what_);
    }
    block_ = std::int64_t(chunk);
    capacity_ = std::max<std::size_t>(2, cache_bytes / (std::size_t(block_) * sizeof(T)));
  }

  std::int64_t size() const { return size_; }
  T at(std::int64_t i) {
    FLANMOE_EXPECT(i >= 0 && i < size_, "{}: element {} of {}", what_, i, size_);
    return block(i / block_)[std::size_t(i % block_)];
  }
  void copy(std::int64_t first, std::span<T> out) {
    const auto count = std::int64_t(out.size());
    FLANMOE_EXPECT(first >= 0 && first + count <= size_, "{}: elements [{}, {}) of {}", what_, first, first + count,
                   size_);
    for (std::int64_t done = 0; done < count;) {
      const std::int64_t at = first + done, inside = at % block_;
      const std::int64_t n = std::min(count - done, block_ - inside);
      const std::vector<T>& values = block(at / block_);
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

  std::size_t load(std::int64_t b) {
    const hsize_t first = hsize_t(b * block_), count = hsize_t(std::min(block_, size_ - b * block_));
    std::vector<T> values(count);
    {
      const std::lock_guard lock(hdf5_mutex());
      const H5Space file_space(H5Dget_space(dataset_.get()), what_);
      h5_check(H5Sselect_hyperslab(file_space.get(), H5S_SELECT_SET, &first, nullptr, &count, nullptr), what_);
      const H5Space memory_space(H5Screate_simple(1, &count, nullptr), what_);
      h5_check(H5Dread(dataset_.get(), memory_type_, memory_space.get(), file_space.get(), H5P_DEFAULT, values.data()),
               fmt::format("{}, elements {} to {}, is damaged", what_, first, first + count - 1));
    }
    if (check_) check_(std::int64_t(first), values);
    std::size_t slot = slots_.size();
    if (slot < capacity_) {
      slots_.emplace_back();
    } else {
      slot = std::size_t(
          std::min_element(slots_.begin(), slots_.end(), [](const Slot& x, const Slot& y) { return x.used < y.used; }) -
          slots_.begin());
      where_.erase(slots_[slot].block);
    }
    slots_[slot] = {b, 0, std::move(values)};
    return slot;
  }

  std::string what_;
  hid_t memory_type_ = H5I_INVALID_HID;
  std::int64_t size_ = 0, block_ = 1;
  std::size_t capacity_ = 2, last_ = 0;
  std::uint64_t clock_ = 0;
  H5Dataset dataset_;
  Check check_;
  std::vector<Slot> slots_;
  std::unordered_map<std::int64_t, std::size_t> where_;
};

}  // namespace flanmoe
