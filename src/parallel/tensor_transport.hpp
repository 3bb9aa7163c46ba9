// How tensors in the memory of a device travel between the ranks of a communicator.
#pragma once

#include <cstdint>
#include <span>

#include "tensor/tensor.hpp"

namespace flanmoe {

/// Consecutive rows of a tensor: those that go to one rank, or come from it.
struct RowRange {
  std::int64_t first = 0, count = 0;
};

/// What Communicator hands over to once it was given one (Communicator::carry_by): the collectives of the same names
/// there, of tensors that the host does not reach. Calls return at once. A collective that was started runs behind what
/// the device was given to compute before, and beside what it is given afterwards, up to finish(). All ranks start
/// every collective in the same order, with or without data.
class TensorTransport {
 public:
  /// Names one collective between its start and its finish.
  using Ticket = int;

  TensorTransport() = default;
  virtual ~TensorTransport() = default;
  TensorTransport(const TensorTransport&) = delete;
  TensorTransport& operator=(const TensorTransport&) = delete;

  virtual Ticket start_all_to_all_rows(const Tensor& receive, std::span<const RowRange> receive_rows,
                                       const Tensor& send, std::span<const RowRange> send_rows) const = 0;
  virtual Ticket start_reduce_scatter_tree(const Tensor& flat, std::span<const std::int64_t> segment_sizes,
                                           const Tensor& work) const = 0;
  virtual Ticket start_all_gather_segments(const Tensor& flat, std::span<const std::int64_t> segment_sizes) const = 0;
  /// What is computed from now on waits for the collective. Once for each.
  virtual void finish(Ticket ticket) const = 0;
};

}  // namespace flanmoe
