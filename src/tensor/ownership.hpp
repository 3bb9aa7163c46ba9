// Which rank of a replica group owns which blocks of matrices. Private to this folder and its tests.
#pragma once

#include <cstdint>
#include <vector>

namespace flanmoe {

/// Shares out the blocks of a placement (whole matrices where they have none), bucket after bucket. A bucket is cut
/// into one run of consecutive blocks for every rank, in the order of the ranks. How long a run is to be follows from
/// what its rank still lacks of an equal share of all buckets so far: so every bucket is spread over all ranks that
/// lack something, and a bucket of fewer blocks than ranks goes to those that got little of the ones before.
///
/// A block belongs to the rank in whose part of the bucket one point of it lies. From the first block to the last this
/// point moves from the beginning of a block to its end: blocks of the same size that are fewer than the ranks would
/// else go to ranks of the same distance, say all to even ones, and recursive halving would move all of them every
/// time. Nobody ever owns more than an equal share of the buckets so far and one block, the largest: as the points do
/// not move back, a run has at most one block more than its rank lacks, and who lacks nothing gets nothing.
class Ownership {
 public:
  explicit Ownership(int ranks) : owned_(std::size_t(ranks), 0), lacking_(owned_) {}
  /// Blocks with so many elements in all follow.
  void begin_bucket(std::int64_t elements);
  /// The owner of the next block of the bucket, of `size` elements.
  int next(std::int64_t size);
  /// Elements of every rank.
  const std::vector<std::int64_t>& owned() const { return owned_; }

 private:
  std::vector<std::int64_t> owned_;
  std::vector<std::int64_t> lacking_;  // of a share, times the number of ranks: whole numbers
  std::int64_t total_ = 0;             // elements of all buckets so far
  std::int64_t bucket_ = 0, before_ = 0;
  std::int64_t all_lacking_ = 0, lacking_so_far_ = 0;  // of all ranks, and of those up to rank_
  std::size_t rank_ = 0;
};

}  // namespace flanmoe
