// Ranks that hold the same weights hold the same bits.
#pragma once

#include <string>

#include "kernels/kernels.hpp"
#include "parallel/communicator.hpp"
#include "tensor/parameters.hpp"

namespace flanmoe {

/// Compares a checksum of every weight over the ranks that hold it. Returns, the same text on all ranks, which
/// parameter differs and which ranks hold what; empty when all are equal. Collective.
std::string replica_difference(const ParameterStore& store, const Communicators& communicators, const Kernels& kernels,
                               KernelContext& context);

}  // namespace flanmoe
