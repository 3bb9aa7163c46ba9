// The training loop that pretraining, instruction tuning and finetuning share.
#pragma once

#include "deck/deck.hpp"
#include "kernels/context.hpp"
#include "parallel/communicator.hpp"
#include "parallel/process_grid.hpp"
#include "parallel/stop.hpp"

namespace flanmoe {

/// What a stage trains on: raw text becomes pairs on the fly, or is refused.
enum class Examples { text_or_pairs, pairs };

/// Trains up to deck.run.steps in deck.run.dir, from the newest checkpoint there, else from run.init_from, else from
/// the seed. `context`: of the device that run.device names. Collective.
Outcome train(const Deck& deck, const ProcessGrid& grid, const Communicators& communicators,
              const KernelContext& context, Examples examples);

}  // namespace flanmoe
