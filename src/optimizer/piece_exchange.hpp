// How the owners of one matrix add up what each has summed over its blocks of rows.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "parallel/communicator.hpp"
#include "tensor/parameters.hpp"

namespace flanmoe {

/// The part of one rank in the sums over the matrices of a placement and bucket that have several owners. The first
/// owner of a matrix is its home: it gets the sums of all blocks and returns the totals. Segments of a bucket are
/// consecutive, so that a rank is the home of one such matrix at most (its last unit in the bucket), and a guest of one
/// at most (its first unit in the bucket).
class PieceExchange {
 public:
  /// Elements to and from every rank in one exchange; one for all of them, kept to spare allocations.
  struct Counts {
    std::vector<std::int64_t> to, from;
    void clear(int ranks) {
      for (auto* counts : {&to, &from}) counts->assign(std::size_t(ranks), 0);
    }
  };

  PieceExchange(const ParameterStore& store, Placement placement, std::int64_t bucket);

  /// Whether there is a matrix with several owners, the same on all ranks: they make all exchanges, or none.
  bool needed() const { return needed_; }
  /// Of the matrix whose home is this rank, 0 without one: blocks of this rank, of all owners, and the other owners.
  std::int64_t own_blocks() const { return own_blocks_; }
  std::int64_t home_blocks() const;
  std::int64_t guests() const { return std::int64_t(guests_.size()); }
  int home_parameter() const { return home_parameter_; }
  /// Of the matrix of which this rank is a guest: its blocks, 0 without one.
  std::int64_t guest_blocks() const { return guest_blocks_; }
  int guest_parameter() const { return guest_parameter_; }

  /// Collective. Sums of blocks, contiguous fp64 rows with what was summed of one block: `sent` (guest_blocks() rows)
  /// goes home; `sums` (home_blocks() rows) has those of this rank first and gets those of the guests behind them, in
  /// order.
  void gather(const Communicator& replicas, Counts& counts, const Tensor& sums, const Tensor& sent) const;
  /// Collective. `copies` (guests() equal rows), of the totals, go to the guests; `received` (1 row) comes from the
  /// home.
  void spread(const Communicator& replicas, Counts& counts, const Tensor& copies, const Tensor& received) const;

 private:
  struct Guest {
    int rank;
    std::int64_t blocks;
  };
  bool needed_ = false;
  int home_parameter_ = -1, guest_parameter_ = -1;
  std::int64_t own_blocks_ = 0, guest_blocks_ = 0;
  int home_ = 0;  // of the matrix of which this rank is a guest
  std::vector<Guest> guests_;
};

}  // namespace flanmoe
