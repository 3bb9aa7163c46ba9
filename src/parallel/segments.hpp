// How segments travel, with counts that fit MPI's int and with larger ones. Private to this folder and its tests, which
// run both ways on small buffers. All return MPI's code.
#pragma once

#include <mpi.h>

#include <span>
#include <vector>

#include "tensor/tensor.hpp"

namespace flanmoe::detail {

/// Every rank's segment to all ranks, in place.
int gather_segments(MPI_Comm comm, const Tensor& flat, std::span<const std::int64_t> sizes, std::vector<int>& counts);
int gather_far_segments(MPI_Comm comm, const Tensor& flat, std::span<const std::int64_t> sizes);

}  // namespace flanmoe::detail
