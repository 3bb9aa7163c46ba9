// What readers of shards keep in memory, under one limit for all of them: blocks and open files.
#pragma once

#include <cstddef>
#include <cstdint>
#include <list>
#include <unordered_map>
#include <vector>

namespace flanmoe {

/// A file that can be closed while nobody reads it, and opens again by itself.
class ClosableFile {
 public:
  virtual ~ClosableFile() = default;
  virtual void close() = 0;
};

/// The files that are open: HDF5 takes some 0.7 MiB for each, and a mixture may have thousands. Those not used for
/// longest are closed. Used from one thread at a time.
class OpenFiles {
 public:
  static constexpr std::size_t kMost = 32;
  /// Notes that a file, which is open, is used now; closes another one when there are too many.
  void use(ClosableFile* file) {
    forget(file);
    open_.push_front(file);
    if (open_.size() <= kMost) return;
    open_.back()->close();
    open_.pop_back();
  }
  void forget(ClosableFile* file) { open_.remove(file); }
  std::size_t size() const { return open_.size(); }

 private:
  std::list<ClosableFile*> open_;  // used last first
};

/// Blocks of any number of tables; those not used for longest go when the bytes would exceed the limit (the newest
/// block always stays). Used from one thread at a time.
class BlockPool {
 public:
  explicit BlockPool(std::size_t most_bytes) : most_bytes_(most_bytes) {}
  /// A number that tells a table's blocks from those of others.
  std::uint64_t new_table() { return tables_++; }
  /// Null when the block is not here; valid until the next keep().
  const std::byte* find(std::uint64_t table, std::int64_t block) {
    const auto found = places_.find({table, block});
    if (found == places_.end()) return nullptr;
    blocks_.splice(blocks_.begin(), blocks_, found->second);
    return found->second->bytes.data();
  }
  const std::byte* keep(std::uint64_t table, std::int64_t block, std::vector<std::byte> bytes) {
    bytes_ += bytes.size();
    while (bytes_ > most_bytes_ && !blocks_.empty()) {
      bytes_ -= blocks_.back().bytes.size();
      places_.erase(blocks_.back().key);
      blocks_.pop_back();
    }
    blocks_.push_front({{table, block}, std::move(bytes)});
    places_[blocks_.front().key] = blocks_.begin();
    return blocks_.front().bytes.data();
  }
  /// Of all blocks that are here.
  std::size_t bytes() const { return bytes_; }
  OpenFiles& files() { return files_; }

 private:
  struct Key {
    std::uint64_t table = 0;
    std::int64_t block = 0;
    bool operator==(const Key&) const = default;
  };
  struct Hash {
    std::size_t operator()(const Key& key) const {
      return std::size_t((key.table * 0x9e3779b97f4a7c15U) ^ (std::uint64_t(key.block) * 0xc2b2ae3d27d4eb4fU));
    }
  };
  struct Block {
    Key key;
    std::vector<std::byte> bytes;
  };
  std::size_t most_bytes_, bytes_ = 0;
  std::uint64_t tables_ = 0;
  OpenFiles files_;
  std::list<Block> blocks_;  // used last first
  std::unordered_map<Key, std::list<Block>::iterator, Hash> places_;
};

}  // namespace flanmoe
