// Shard sets far larger than memory: opening reads no tokens, and what a rank keeps is bounded.
//
// FLANMOE_BIG_SHARDS_GB=50 unit.big_shard_test makes and reads sets of that size (default 0.15 GB) in $TMPDIR and
// prints seconds and MiB; a set of a named size must open within a second and the whole process stay below 100 MB.
// Their tokens are all 0, and what is zero in a file is given back to the file system while it is written, so that
// 50 GB take some 2 GB of disk.
#include <fcntl.h>
#include <fmt/format.h>
#include <gtest/gtest.h>
#include <malloc.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <iostream>

#include "base/error.hpp"
#include "base/timer.hpp"
#include "data/batch.hpp"
#include "data_fixture.hpp"
#include "train/resources.hpp"

namespace flanmoe {
namespace {

constexpr std::int64_t kInput = 500, kTarget = 60;  // tokens of an example
constexpr double kMebibyte = 1024.0 * 1024.0;

#ifdef __SANITIZE_ADDRESS__
constexpr bool kAddressSanitizer = true;  // it keeps what is freed
#else
constexpr bool kAddressSanitizer = false;
#endif

/// The size was asked for: then the bounds are those of a large set.
bool is_named() { return std::getenv("FLANMOE_BIG_SHARDS_GB") != nullptr; }
double gigabytes() { return is_named() ? std::atof(std::getenv("FLANMOE_BIG_SHARDS_GB")) : 0.15; }

/// Makes holes of the pages of a file that hold only zeros.
class HoleMaker {
 public:
  explicit HoleMaker(const std::string& path) : file_(::open(path.c_str(), O_RDWR)), piece_(std::size_t(1) << 20) {
    if (file_ < 0 && is_named()) fail("{}: {}", path, std::strerror(errno));
  }
  ~HoleMaker() { ::close(file_); }
  HoleMaker(const HoleMaker&) = delete;
  HoleMaker& operator=(const HoleMaker&) = delete;
  /// From where the last call ended to the end of the file.
  void advance() {
    for (ssize_t got = 0; (got = ::pread(file_, piece_.data(), piece_.size(), at_)) == ssize_t(piece_.size());
         at_ += got) {
      for (off_t page = 0; page < got; page += kPage) {
        const char* begin = piece_.data() + page;
        if (*begin != 0 || std::memcmp(begin, begin + 1, kPage - 1) != 0) continue;
        if (::fallocate(file_, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, at_ + page, kPage) == 0) continue;
        if (is_named()) fail("no hole can be made in a file of $TMPDIR: {}", std::strerror(errno));
        return;
      }
    }
  }

 private:
  static constexpr off_t kPage = 16384;
  int file_;
  off_t at_ = 0;
  std::vector<char> piece_;
};

/// `tasks` shards of one task each, with zeros for tokens; gives their bytes.
std::uintmax_t write_shards(const TemporaryFolder& folder, int tasks, std::int64_t examples) {
  std::uintmax_t bytes = 0;
  Example example;
  example.input.assign(kInput, 0);
  example.target.assign(kTarget, 0);
  example.split = "train";
  for (int t = 0; t < tasks; ++t) {
    example.task = fmt::format("task{}", t);
    const std::string path = folder.file(fmt::format("{}.h5", t));
    ShardWriter writer(path, small_tokenizer());
    HoleMaker holes(fmt::format("{}.writing-{}", path, ::getpid()));
    for (std::int64_t i = 0; i < examples; ++i) {
      writer.add(example);
      if (i % 16384 == 0) holes.advance();
    }
    writer.finish();
    bytes += std::filesystem::file_size(path);
  }
  return bytes;
}

/// Bytes that this process has read from files.
std::int64_t bytes_read() {
  std::ifstream file("/proc/self/io");
  std::string key;
  std::int64_t value = 0;
  file >> key >> value;
  return key == "rchar:" ? value : -1;
}

class BigShards : public testing::TestWithParam<int> {};

TEST_P(BigShards, OpenWithoutReadingTokensAndStayInBoundedMemory) {
  const int tasks = GetParam();
  const TemporaryFolder folder;
  const double tokens = double(kInput + kTarget);
  const auto examples = std::int64_t(gigabytes() * 1e9 / (double(tasks) * 4 * tokens));
  const std::uintmax_t bytes = write_shards(folder, tasks, examples);
  ::malloc_trim(0);
  const std::size_t before = resident_bytes();
  const std::int64_t read_before = bytes_read();

  Deck deck;
  deck.data.train = folder.file("*.h5");
  deck.batch.rows = 32;
  deck.batch.input_length = 1024;
  deck.batch.target_length = 256;
  const double start = seconds_now();
  BatchSource source(deck, 1000);
  const double opened = seconds_now() - start;
  const std::int64_t read_to_open = bytes_read() - read_before;
  EXPECT_EQ(source.mixture().size(), std::size_t(tasks));

  std::size_t most = resident_bytes();
  constexpr std::int64_t kSteps = 60;
  const double steps_start = seconds_now();
  for (std::int64_t step = 0; step < kSteps; ++step) {
    const PackedBatch batch = source.read(step * 1000, 0, 32);  // far apart: other blocks each time
    EXPECT_GE(batch.segment_row_S.size(), 32U);
    most = std::max(most, resident_bytes());
  }
  const double per_step = (seconds_now() - steps_start) / double(kSteps);
  const double grown = most > before ? double(most - before) / kMebibyte : 0;
  std::cout << fmt::format(
      "{:.2f} GB in {} shards: open after {:.3f} s and {:.2f} MiB read, {:.2f} ms a step of 32 rows, {:.1f} MiB "
      "more in memory, {:.1f} MB in all\n",
      double(bytes) / 1e9, tasks, opened, double(read_to_open) / kMebibyte, 1e3 * per_step, grown, double(most) / 1e6);
  if (!kAddressSanitizer) {
    EXPECT_LT(grown, 80) << "MiB";
  }
  if (is_named()) {
    EXPECT_LT(opened, 1) << "seconds";
  }
  if (is_named() && !kAddressSanitizer) {
    EXPECT_LT(double(most), 100e6) << "bytes";
  }
  // To open is to read each header, and the lengths of some rows of examples.
  EXPECT_LT(double(read_to_open), 0.25 * double(bytes));
  EXPECT_LT(double(read_to_open), 100e6);
}

INSTANTIATE_TEST_SUITE_P(Shards, BigShards, testing::Values(1, 50));

}  // namespace
}  // namespace flanmoe
