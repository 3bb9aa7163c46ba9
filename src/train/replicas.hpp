// Ranks that hold the same weights, or the same optimizer state, hold the same bits.
#pragma once

#include <string>

#include "kernels/kernels.hpp"
#include "optimizer/optimizer.hpp"
#include "parallel/communicator.hpp"
#include "tensor/parameters.hpp"

namespace flanmoe {

/// Compares a checksum of every weight, and of its packed copies, over the ranks that hold it and, of every matrix
/// whose blocks of rows have several owners, of Adafactor's factor of its columns over these. Returns, the same text on
/// all ranks, what differs and which ranks hold what; empty when all are equal. Collective.
std::string replica_difference(const ParameterStore& store, const Optimizer& optimizer,
                               const Communicators& communicators, const Kernels& kernels, KernelContext& context);

}  // namespace flanmoe
