// The speed of large matrix products here and now: what a training step is compared with.
#pragma once

#include "kernels/kernels.hpp"
#include "parallel/communicator.hpp"

namespace flanmoe {

/// Floating-point operations per second that all ranks together reach in square products of `compute` type, with all
/// ranks busy at once. Takes about a quarter of a second; collective.
double measure_roof(const Kernels& kernels, DType compute, const Communicator& world);

/// Bytes per second that this rank's kernels move when all ranks do, of buffers larger than caches of a core.
/// Collective.
double measure_memory_speed(const Kernels& kernels, const Communicator& world);

}  // namespace flanmoe
