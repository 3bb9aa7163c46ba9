// flanmoe selfcheck DECK: does this deck train the same on every layout that these ranks can make?
#pragma once

#include "deck/deck.hpp"
#include "parallel/communicator.hpp"

namespace flanmoe {

/// Runs a few steps from the seed on 1, 2, 4, ... and all ranks, with every expert degree of 1, 2, 4, ... that the deck
/// allows, compares losses, gradient norms, the state of the optimizer and the next samples, and reads the checkpoint
/// of the first layout on every other one. Prints a table; true when all agree as far as the deck promises: to the bit
/// where reduction.leaves shapes the sums of both, else to rounding. Leaves nothing behind; its folder, run.dir with
/// .selfcheck after it, must not exist. Collective.
bool selfcheck(const Deck& deck, const Communicator& world);

}  // namespace flanmoe
