// The evaluate stage: weights of a checkpoint, measured on examples of shards.
#pragma once

#include <string>

#include "deck/deck.hpp"
#include "kernels/context.hpp"
#include "parallel/communicator.hpp"
#include "parallel/process_grid.hpp"
#include "parallel/stop.hpp"

namespace flanmoe {

/// Loads the weights that run.init_from names (a checkpoint folder, or a run folder: its newest checkpoint; empty: the
/// newest checkpoint of run.dir), measures the examples of evaluate.shards, prints the table, and writes
/// RUN/evaluation.json, RUN/predictions.jsonl and RUN/evaluation.deck (the resolved deck). The results do not depend on
/// the number of ranks. When RUN/evaluation.json already is the result of the same deck, checkpoint and shards, prints
/// it and does nothing else. Asked to stop (parallel/stop.hpp), it ends after its round. `context`: of the device that
/// run.device names; the host's has nothing in it. Collective over the world.
Outcome run_evaluation(const Deck& deck, const ProcessGrid& grid, const Communicators& communicators,
                       const KernelContext& context = {});

/// The checkpoint folder that an evaluation of this deck loads. Throws UsageError saying where it looked.
std::string find_weights(const RunDeck& run);

}  // namespace flanmoe
