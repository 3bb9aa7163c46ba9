// Whole chunks of a one-dimensional HDF5 dataset, read and written directly. The general read and write calls of HDF5's
// MPI build allocate memory for every chunk of the dataset each time; for a large shard that costs a thousand times
// more than the chunk.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "base/hdf5.hpp"

namespace flanmoe {

/// The checksum of HDF5's Fletcher-32 filter: two running sums modulo 65535 over big-endian 16-bit words.
std::uint32_t fletcher32(std::span<const std::uint8_t> bytes);

/// A chunked dataset whose only filter is Fletcher-32. Elements in memory are laid out as `memory_type` says.
class ChunkedDataset {
 public:
  ChunkedDataset() = default;
  /// Creates an empty dataset that grows.
  static ChunkedDataset create(hid_t file, const std::string& name, hid_t file_type, hid_t memory_type,
                               std::int64_t chunk);
  /// Opens one; `what` begins every error message. Throws when layout or filters are others.
  static ChunkedDataset open(hid_t file, const std::string& name, hid_t memory_type, const std::string& what);

  bool is_open() const { return bool(dataset_); }
  void close() { dataset_.reset(); }
  /// After close(): the same dataset of the same file.
  void open_again(hid_t file, const std::string& name);

  std::int64_t chunk() const { return chunk_; }
  std::int64_t size() const { return size_; }
  /// Appends `count` <= chunk elements as the next chunk; only the last chunk may be shorter than the others.
  void append_chunk(const void* elements, std::int64_t count);
  /// Reads the first `count` elements of chunk `index` after checking its checksum.
  void read_chunk(std::int64_t index, void* elements, std::int64_t count);

 private:
  std::string what_;
  hid_t memory_type_ = H5I_INVALID_HID;
  H5Dataset dataset_;
  H5Type file_type_;
  bool converts_ = false;                          // file and memory layouts differ
  std::size_t file_bytes_ = 0, memory_bytes_ = 0;  // of an element
  std::int64_t chunk_ = 1, size_ = 0;

  void describe(hid_t memory_type);
};

}  // namespace flanmoe
