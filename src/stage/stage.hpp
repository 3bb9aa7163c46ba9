// What one run does: the stage of its deck.
#pragma once

#include "deck/deck.hpp"
#include "kernels/context.hpp"
#include "parallel/communicator.hpp"
#include "parallel/process_grid.hpp"
#include "train/train.hpp"

namespace flanmoe {

/// Runs deck.run.stage: pretrain, instruct, finetune or evaluate. `context`: of the device that run.device names.
/// Collective.
Outcome run_stage(const Deck& deck, const ProcessGrid& grid, const Communicators& communicators,
                  const KernelContext& context);

}  // namespace flanmoe
