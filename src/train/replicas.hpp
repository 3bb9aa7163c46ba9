// Ranks that hold the same weights hold the same bits.
#pragma once

#include "kernels/kernels.hpp"
#include "parallel/communicator.hpp"
#include "tensor/parameters.hpp"

namespace flanmoe {

/// Compares a checksum of every weight over the ranks that hold it. Throws Error on all ranks when they differ, naming
/// the parameter and which ranks hold what. Collective.
void compare_replicas(const ParameterStore& store, const Communicators& communicators, const Kernels& kernels,
                      KernelContext& context);

}  // namespace flanmoe
