// Measures a machine description here and now.
#pragma once

#include <cstdint>
#include <vector>

#include "parallel/communicator.hpp"
#include "train/plan/machine.hpp"

namespace flanmoe {

/// The ranks of this rank's node, and those that hold the same place on other nodes: all messages of the second pass
/// between nodes. `host`: the same on the ranks of a node and on no others. Collective.
struct Neighbours {
  Communicator node, across;
  std::int64_t most_per_node = 1;  // ranks of the fullest node
};
Neighbours neighbours_of(const Communicator& world, std::uint64_t host);

/// The rates of the cpu kernels with all ranks busy at once, and of messages between the ranks of a node and of
/// different nodes where there are several. Takes about ten seconds; collective, the same on every rank.
Machine calibrate(const Communicator& world);

/// Coefficients at least 0 that fit times[i] = sum over j of coefficients[j] * rows[i][j] with the least sum of squares
/// of relative errors.
std::vector<double> fit_times(const std::vector<std::vector<double>>& rows, const std::vector<double>& times);

}  // namespace flanmoe
