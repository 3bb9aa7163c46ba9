// From a started MPI to what a stage needs: ranks that agree on the deck, and threads.
#pragma once

#include "deck/deck.hpp"
#include "parallel/communicator.hpp"
#include "stage/arguments.hpp"

namespace flanmoe {

/// The deck, read by every rank and checked by rank 0. Throws UsageError on all ranks when it is wrong, and Error when
/// ranks read different decks. Collective.
Deck agree_on_deck(const Arguments& arguments, const Communicator& world);

/// Throws UsageError when Slurm started another number of tasks than MPI sees ranks.
void expect_ranks_of_slurm(int world_size);

/// Sets the OpenMP threads of this rank: `threads`, or with 0 the cores that this process may use divided by the ranks
/// of this host that may use the same ones. Collective.
void set_threads(std::int64_t threads, const Communicator& world);

/// Measures this machine; the description goes to standard output, or to `file` where one is named. Collective.
void write_calibration(const std::string& file, const Communicator& world);

}  // namespace flanmoe
