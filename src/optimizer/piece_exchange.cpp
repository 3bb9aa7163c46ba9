#include "optimizer/piece_exchange.hpp"

#include <numeric>

namespace flanmoe {
namespace {

/// All elements of a tensor as rows of one, which is what travels: the two matrices of a rank differ in width.
Tensor as_elements(const Tensor& x) { return {x.data, DType::f64, 1, x.size(), 1, 1}; }

}  // namespace

PieceExchange::PieceExchange(const ParameterStore& store, Placement placement, std::int64_t bucket) {
  const int rank = store.replica_rank(placement);
  const ParameterUnit* first = nullptr;  // of the matrix that the units are of
  for (const ParameterUnit& unit : store.units(placement, bucket)) {
    const ParameterSpec& spec = store.specs()[std::size_t(unit.parameter)];
    if (unit.first_row == 0) first = &unit;
    if (unit.rows == spec.rows) continue;
    needed_ = true;
    const std::int64_t blocks = (unit.rows + spec.block_rows - 1) / spec.block_rows;
    if (unit.owner == rank) {
      (unit.first_row == 0 ? own_blocks_ : guest_blocks_) = blocks;
      (unit.first_row == 0 ? home_parameter_ : guest_parameter_) = unit.parameter;
      if (unit.first_row > 0) home_ = first->owner;
    } else if (unit.first_row > 0 && first->owner == rank) {
      guests_.push_back({unit.owner, blocks});
    }
  }
}

std::int64_t PieceExchange::home_blocks() const {
  return std::accumulate(guests_.begin(), guests_.end(), own_blocks_,
                         [](std::int64_t sum, const Guest& guest) { return sum + guest.blocks; });
}

void PieceExchange::gather(const Communicator& replicas, Counts& counts, const Tensor& sums, const Tensor& sent) const {
  counts.clear(replicas.size());
  if (guest_blocks_ > 0) counts.to[std::size_t(home_)] = sent.size();
  for (const Guest& guest : guests_) counts.from[std::size_t(guest.rank)] = guest.blocks * sums.cols;
  const Tensor arriving = guests_.empty() ? Tensor{} : sums.slice_rows(own_blocks_, sums.rows - own_blocks_);
  replicas.all_to_all_rows(as_elements(arriving), counts.from, as_elements(sent), counts.to);
}

void PieceExchange::spread(const Communicator& replicas, Counts& counts, const Tensor& copies,
                           const Tensor& received) const {
  counts.clear(replicas.size());
  for (const Guest& guest : guests_) counts.to[std::size_t(guest.rank)] = copies.cols;
  if (guest_blocks_ > 0) counts.from[std::size_t(home_)] = received.size();
  replicas.all_to_all_rows(as_elements(received), counts.from, as_elements(copies), counts.to);
}

}  // namespace flanmoe
