// How tensors in the memory of a device travel between the ranks of a communicator.
#pragma once

#include <cstdint>
#include <span>

#include "tensor/tensor.hpp"

namespace flanmoe {

/// What Communicator hands over to once it was given one (Communicator::carry_by): the collectives of the same names
/// there, of tensors that the host does not reach. Calls return at once, in the order of the device's stream. All ranks
/// call every collective in the same order, with or without data.
class TensorTransport {
 public:
  TensorTransport() = default;
  virtual ~TensorTransport() = default;
  TensorTransport(const TensorTransport&) = delete;
  TensorTransport& operator=(const TensorTransport&) = delete;

  virtual void all_to_all_rows(const Tensor& receive, std::span<const std::int64_t> receive_rows, const Tensor& send,
                               std::span<const std::int64_t> send_rows) const = 0;
  virtual void reduce_scatter_tree(const Tensor& flat, std::span<const std::int64_t> segment_sizes,
                                   const Tensor& work) const = 0;
  virtual void all_gather_segments(const Tensor& flat, std::span<const std::int64_t> segment_sizes) const = 0;
};

}  // namespace flanmoe
