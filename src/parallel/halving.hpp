// Sums of segments over ranks without room for a segment of every rank. Private to this folder and its tests.
#pragma once

#include <mpi.h>

#include <algorithm>
#include <cstdint>
#include <span>

#include "tensor/dtype.hpp"

namespace flanmoe::detail {

/// The segments of the ranks first, first + step, ... of a buffer in which all ranks' segments lie end to end, walked
/// through as if they were adjacent.
class SegmentStream {
 public:
  SegmentStream(std::span<const std::int64_t> sizes, int first, int step);
  /// Elements not taken yet.
  std::int64_t left() const { return left_; }
  /// Takes `count` elements: calls f(first element in the buffer, elements) for each part that is contiguous.
  template <class F>
  void take(std::int64_t count, F&& f) {
    left_ -= count;
    while (count > 0) {
      if (within_ == sizes_[rank_]) {
        next_segment();
        continue;
      }
      const std::int64_t here = std::min(count, sizes_[rank_] - within_);
      f(offset_ + within_, here);
      within_ += here;
      count -= here;
    }
  }

 private:
  void next_segment();
  std::span<const std::int64_t> sizes_;
  std::size_t rank_, step_;
  std::int64_t offset_ = 0;  // of the segment of rank_
  std::int64_t within_ = 0;  // elements of it that are taken
  std::int64_t left_ = 0;
};

/// How segments are summed, and in messages of how many elements at most.
struct ReducePlan {
  bool halves;         // by recursive halving; else every segment goes to its owner, in pieces
  std::int64_t piece;  // elements
  /// A power of two of ranks halves, except in bf16, which is rounded once, so that no partial sums of it may travel.
  ReducePlan(std::span<const std::int64_t> sizes, DType dtype);
};

/// One round of recursive halving: what is summed over `distance` ranks so far is exchanged with the partner, which
/// has summed the neighbouring `distance` ranks. Distances 1, 2, 4, ...: neighbours are added first, as in tree.hpp.
struct HalvingRound {
  int partner;
  SegmentStream give, keep;  // of what this rank has partial sums of, the partner's half and its own
  HalvingRound(std::span<const std::int64_t> sizes, int rank, int distance)
      : partner(rank ^ distance),
        give(sizes, partner % (2 * distance), 2 * distance),
        keep(sizes, rank % (2 * distance), 2 * distance) {}
};

/// Leaves segment `rank` summed over a power of two of ranks in place, by recursive halving in messages of at most
/// `piece` elements; T in {float, double}. `work` holds 2 * piece elements. Every rank gives away every segment but its
/// own once, to one of log2(ranks) partners. Returns MPI's code.
template <class T>
int reduce_by_halving(MPI_Comm comm, T* flat, std::span<const std::int64_t> sizes, int rank, T* work,
                      std::int64_t piece);

/// The same for any number of ranks, and bf16: `piece` elements of every owner's segment at a time go from everybody to
/// the owner. `work` holds sizes.size() * piece elements.
template <class T>
int reduce_in_pieces(MPI_Comm comm, T* flat, std::span<const std::int64_t> sizes, int rank, T* work,
                     std::int64_t piece);

}  // namespace flanmoe::detail
