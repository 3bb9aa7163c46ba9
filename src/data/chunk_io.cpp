#include "data/chunk_io.hpp"

#include <algorithm>
#include <cstring>

namespace flanmoe {
namespace {

constexpr std::size_t kChecksumBytes = 4;

std::uint32_t fold(std::uint32_t sum) { return (sum & 0xffffU) + (sum >> 16); }

std::uint32_t stored_checksum(const std::uint8_t* bytes) {
  return std::uint32_t(bytes[0]) | std::uint32_t(bytes[1]) << 8 | std::uint32_t(bytes[2]) << 16 |
         std::uint32_t(bytes[3]) << 24;
}

/// A chunk with its checksum, and the second buffer through which HDF5 converts compounds: of each thread, not of each
/// table, because a mixture may have thousands of shards.
struct Scratch {
  std::vector<std::uint8_t> buffer, background;
};

Scratch& scratch(std::size_t bytes) {
  thread_local Scratch all;
  if (all.buffer.size() < bytes) {
    all.buffer.resize(bytes);
    all.background.resize(bytes);
  }
  return all;
}

H5Property without_chunk_cache(const std::string& what) {
  H5Property access(H5Pcreate(H5P_DATASET_ACCESS), what);
  h5_check(H5Pset_chunk_cache(access.get(), 1, 0, 1.0), what);
  return access;
}

}  // namespace

std::uint32_t fletcher32(std::span<const std::uint8_t> bytes) {
  std::uint32_t first = 0, second = 0;
  // 360 words are the most that cannot overflow 32 bits between two folds.
  constexpr std::size_t kRun = 720;
  for (std::size_t begin = 0; begin < bytes.size(); begin += kRun) {
    const std::size_t end = std::min(bytes.size(), begin + kRun);
    for (std::size_t i = begin; i < end; i += 2) {
      first += std::uint32_t(bytes[i]) << 8 | (i + 1 < end ? bytes[i + 1] : 0U);
      second += first;
    }
    first = fold(first);
    second = fold(second);
  }
  return fold(second) << 16 | fold(first);
}

void ChunkedDataset::describe(hid_t memory_type) {
  memory_type_ = memory_type;
  file_type_ = H5Type(H5Dget_type(dataset_.get()), what_);
  converts_ = H5Tequal(file_type_.get(), memory_type) <= 0;
  file_bytes_ = H5Tget_size(file_type_.get());
  memory_bytes_ = H5Tget_size(memory_type);
}

ChunkedDataset ChunkedDataset::create(hid_t file, const std::string& name, hid_t file_type, hid_t memory_type,
                                      std::int64_t chunk) {
  ChunkedDataset out;
  out.what_ = "table '" + name + "'";
  out.chunk_ = chunk;
  const hsize_t none = 0, unlimited = H5S_UNLIMITED, chunk_size = hsize_t(chunk);
  const H5Space space(H5Screate_simple(1, &none, &unlimited), name);
  const H5Property create = timeless_dataset(name);
  h5_check(H5Pset_chunk(create.get(), 1, &chunk_size), name);
  h5_check(H5Pset_fletcher32(create.get()), name);
  out.dataset_ = H5Dataset(H5Dcreate2(file, name.c_str(), file_type, space.get(), H5P_DEFAULT, create.get(),
                                      without_chunk_cache(name).get()),
                           name);
  out.describe(memory_type);
  return out;
}

ChunkedDataset ChunkedDataset::open(hid_t file, const std::string& name, hid_t memory_type, const std::string& what) {
  ChunkedDataset out;
  out.what_ = what;
  out.dataset_ = H5Dataset(H5Dopen2(file, name.c_str(), without_chunk_cache(what).get()), what);
  const H5Space space(H5Dget_space(out.dataset_.get()), what);
  const H5Property create(H5Dget_create_plist(out.dataset_.get()), what);
  hsize_t extent = 0, chunk = 0;
  if (H5Sget_simple_extent_ndims(space.get()) != 1 || H5Sget_simple_extent_dims(space.get(), &extent, nullptr) != 1) {
    fail("{} must have one dimension", what);
  }
  constexpr hsize_t kLargestChunk = 1 << 24;
  if (H5Pget_layout(create.get()) != H5D_CHUNKED || H5Pget_chunk(create.get(), 1, &chunk) != 1 || chunk == 0 ||
      chunk > kLargestChunk) {
    fail("{} must be chunked, with at most {} elements a chunk", what, kLargestChunk);
  }
  unsigned flags = 0;
  std::size_t values = 0;
  if (H5Pget_nfilters(create.get()) != 1 ||
      H5Pget_filter2(create.get(), 0, &flags, &values, nullptr, 0, nullptr, nullptr) != H5Z_FILTER_FLETCHER32) {
    fail("{} must have the Fletcher-32 filter and no other", what);
  }
  out.chunk_ = std::int64_t(chunk);
  out.size_ = std::int64_t(extent);
  out.describe(memory_type);
  return out;
}

void ChunkedDataset::open_again(hid_t file, const std::string& name) {
  dataset_ = H5Dataset(H5Dopen2(file, name.c_str(), without_chunk_cache(what_).get()), what_);
}

void ChunkedDataset::append_chunk(const void* elements, std::int64_t count) {
  FLANMOE_EXPECT(count > 0 && count <= chunk_ && size_ % chunk_ == 0, "{}: a chunk of {} behind {}", what_, count,
                 size_);
  const std::size_t bytes = std::size_t(chunk_) * file_bytes_;
  auto& [buffer, background] = scratch(std::size_t(chunk_) * std::max(file_bytes_, memory_bytes_) + kChecksumBytes);
  std::fill(buffer.begin(), buffer.end(), std::uint8_t{0});
  std::memcpy(buffer.data(), elements, std::size_t(count) * memory_bytes_);
  if (converts_) {
    h5_check(
        H5Tconvert(memory_type_, file_type_.get(), std::size_t(count), buffer.data(), background.data(), H5P_DEFAULT),
        what_);
    std::fill(buffer.begin() + std::ptrdiff_t(std::size_t(count) * file_bytes_), buffer.end(), std::uint8_t{0});
  }
  const std::uint32_t checksum = fletcher32(std::span(buffer).first(bytes));
  for (std::size_t i = 0; i < kChecksumBytes; ++i) buffer[bytes + i] = std::uint8_t(checksum >> (8 * i));
  const hsize_t first = hsize_t(size_), extent = hsize_t(size_ + count);
  h5_check(H5Dset_extent(dataset_.get(), &extent), what_);
  h5_check(H5Dwrite_chunk(dataset_.get(), H5P_DEFAULT, 0, &first, bytes + kChecksumBytes, buffer.data()), what_);
  size_ += count;
}

void ChunkedDataset::read_chunk(std::int64_t index, void* elements, std::int64_t count) {
  const hsize_t first = hsize_t(index * chunk_);
  const std::size_t bytes = std::size_t(chunk_) * file_bytes_;
  const auto where = [&] { return fmt::format("{}, elements {} to {}", what_, first, first + hsize_t(count) - 1); };
  auto& [buffer, background] = scratch(std::size_t(chunk_) * std::max(file_bytes_, memory_bytes_) + kChecksumBytes);
  hsize_t stored = 0;
  h5_check(H5Dget_chunk_storage_size(dataset_.get(), &first, &stored), where());
  if (stored != bytes + kChecksumBytes) {
    fail("{}: the chunk is damaged: it has {} bytes, expected {}", where(), stored, bytes + kChecksumBytes);
  }
  std::uint32_t skipped_filters = 0;
  h5_check(H5Dread_chunk(dataset_.get(), H5P_DEFAULT, &first, &skipped_filters, buffer.data()), where());
  if (skipped_filters != 0) fail("{}: the chunk is damaged: it has no checksum", where());
  const std::uint32_t expected = stored_checksum(buffer.data() + bytes);
  const std::uint32_t found = fletcher32(std::span(buffer).first(bytes));
  if (found != expected) {
    fail("{}: the chunk is damaged: its checksum is {:08x}, the file says {:08x}", where(), found, expected);
  }
  if (converts_) {
    h5_check(
        H5Tconvert(file_type_.get(), memory_type_, std::size_t(count), buffer.data(), background.data(), H5P_DEFAULT),
        where());
  }
  std::memcpy(elements, buffer.data(), std::size_t(count) * memory_bytes_);
}

}  // namespace flanmoe
