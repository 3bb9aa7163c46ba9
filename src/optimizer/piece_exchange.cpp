#include "optimizer/piece_exchange.hpp"

#include <algorithm>
#include <numeric>

namespace flanmoe {
namespace {

/// All elements of a tensor as rows of one, which is what travels: the two matrices of a rank differ in width.
Tensor as_elements(const Tensor& x) { return {x.data, DType::f64, 1, x.size(), 1, 1}; }

}  // namespace

PieceExchange::PieceExchange(const ParameterStore& store, Placement placement)
    : ranks_(std::size_t(store.replica_size(placement))) {
  const int rank = store.replica_rank(placement);
  const ParameterUnit* first = nullptr;  // of the matrix that the units are of
  for (const ParameterUnit& unit : store.units(placement)) {
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
  send_.resize(ranks_);
  receive_.resize(ranks_);
}

std::int64_t PieceExchange::home_blocks() const {
  return std::accumulate(guests_.begin(), guests_.end(), own_blocks_,
                         [](std::int64_t sum, const Guest& guest) { return sum + guest.blocks; });
}

void PieceExchange::gather(const Communicator& replicas, const Tensor& sums, const Tensor& sent) const {
  std::fill(send_.begin(), send_.end(), 0);
  std::fill(receive_.begin(), receive_.end(), 0);
  if (guest_blocks_ > 0) send_[std::size_t(home_)] = sent.size();
  for (const Guest& guest : guests_) receive_[std::size_t(guest.rank)] = guest.blocks * sums.cols;
  const Tensor arriving = guests_.empty() ? Tensor{} : sums.slice_rows(own_blocks_, sums.rows - own_blocks_);
  replicas.all_to_all_rows(as_elements(arriving), receive_, as_elements(sent), send_);
}

void PieceExchange::spread(const Communicator& replicas, const Tensor& totals, const Tensor& received) const {
  std::fill(send_.begin(), send_.end(), 0);
  std::fill(receive_.begin(), receive_.end(), 0);
  for (const Guest& guest : guests_) send_[std::size_t(guest.rank)] = totals.cols;
  if (guest_blocks_ > 0) receive_[std::size_t(home_)] = received.size();
  const Tensor leaving = guests_.empty() ? Tensor{} : totals.slice_rows(1, guests());
  replicas.all_to_all_rows(as_elements(received), receive_, as_elements(leaving), send_);
}

}  // namespace flanmoe
