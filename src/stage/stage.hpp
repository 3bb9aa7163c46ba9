// What one run does: the stage of its deck.
#pragma once

#include "deck/deck.hpp"
#include "parallel/communicator.hpp"
#include "parallel/process_grid.hpp"
#include "train/train.hpp"

namespace flanmoe {

/// Runs deck.run.stage: pretrain, instruct, finetune or evaluate. Collective.
Outcome run_stage(const Deck& deck, const ProcessGrid& grid, const Communicators& communicators);

}  // namespace flanmoe
