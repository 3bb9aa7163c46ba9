// One rank's memory, model and optimizer, and one optimizer step over them.
#pragma once

#include <cstdint>
#include <limits>
#include <optional>
#include <string>
#include <vector>

#include "base/error.hpp"
#include "checkpoint/background.hpp"
#include "checkpoint/checkpoint.hpp"
#include "data/batch.hpp"
#include "deck/deck.hpp"
#include "kernels/kernels.hpp"
#include "model/model.hpp"
#include "optimizer/optimizer.hpp"
#include "parallel/communicator.hpp"
#include "parallel/process_grid.hpp"
#include "parallel/together.hpp"
#include "tensor/arena.hpp"
#include "train/flops.hpp"
#include "train/leaf_sums.hpp"
#include "train/metrics.hpp"

namespace flanmoe {

/// What is at fault when a step is bad.
enum class Fault {
  batch,    // loss or gradient norm are not finite or above a limit
  machine,  // ranks that must hold the same weights do not
};

/// The step was not taken. Thrown on every rank, before anything is updated.
class BadStep : public SharedError {
 public:
  BadStep(std::int64_t step, const std::string& what, bool stop_asked, Fault fault = Fault::batch)
      : SharedError(fmt::format("step {}: {}; stopped before the update", step + 1, what)),
        step_(step),
        stop_asked_(stop_asked),
        fault_(fault) {}
  std::int64_t step() const { return step_; }      // from 0
  bool stop_asked() const { return stop_asked_; }  // by any rank
  Fault fault() const { return fault_; }

 private:
  std::int64_t step_;
  bool stop_asked_;
  Fault fault_;
};

/// What a step may not exceed.
struct StepLimits {
  double loss = std::numeric_limits<double>::infinity();
  double norm = std::numeric_limits<double>::infinity();
};

/// Rows of the global batch that one rank works on.
struct RankRows {
  std::int64_t first = 0, rows = 0, microbatch = 0;
  static RankRows of(const Deck& deck, const ProcessGrid& grid);
};

class Trainer {
 public:
  /// Builds everything and measures its memory; takes none yet. `context`: of the device that run.device names
  /// (Device::context); the host's has nothing in it.
  Trainer(const Deck& deck, const ProcessGrid& grid, const Communicators& communicators, KernelContext context = {});

  /// Takes the memory of all arenas, touched: after this model and optimizer take none from the heap in a step.
  void commit_memory();
  std::vector<const Arena*> arenas() const { return {arenas_.begin(), arenas_.end()}; }
  std::size_t arena_bytes() const;

  /// Weights before the first step: from the seed, or the weights of a checkpoint with a fresh optimizer (upcycled
  /// where run.upcycle says so).
  void start_from_seed();
  CheckpointInfo start_from_weights(const std::string& checkpoint);
  /// Weights and optimizer state of a checkpoint of this run.
  CheckpointInfo go_on_from(const std::string& checkpoint);
  /// Leaves out a step whose update was refused: working weights become those of a restart behind it. Throws BadStep
  /// where replicas differ and faults.compare_every is above 0. Collective.
  void skip(std::int64_t step, bool stop_asked);
  /// A number that masters and moments of all ranks give together, the same whoever owns them. Collective.
  std::uint64_t state_hash() const;
  /// Writes a checkpoint while the training stands still.
  std::string save(const CheckpointInfo& info);
  /// Writes one behind the training; null without checkpoint.background.
  BackgroundWriter* writer() { return writer_ ? &*writer_ : nullptr; }
  /// Throws BadStep, on every rank, naming ranks and parameter when what ranks hold alike (replica_difference) differs;
  /// `step` is the one that is under way or has ended. Collective.
  void expect_equal_replicas(std::int64_t step, bool stop_asked);

  struct StepOutcome {
    StepRecord record;
    WorkCounts work;          // of the whole batch
    bool stop_asked = false;  // by any rank
    Traffic traffic;          // of this rank, without comparisons of replicas
  };
  /// Optimizer step `step` (from 0) over this rank's microbatches. `stop_asked`: this rank wants to end after the step.
  /// Throws BadStep on every rank, before anything is updated, when the loss or the gradient norm is not finite or
  /// above its limit, or when replicas are compared (see compares_in) and differ. Collective.
  StepOutcome step(std::int64_t step, const std::vector<PackedBatch>& microbatches, bool stop_asked,
                   const StepLimits& limits = {});

  const ParameterStore& store() const { return store_; }
  ParameterStore& store() { return store_; }
  const Kernels& kernels() const { return kernels_; }
  const KernelContext& context() const { return context_; }

 private:
  void lay();
  /// Gradients in level 0 of the store, sums in statistics_, of this rank's microbatches.
  void add_up(const std::vector<PackedBatch>& microbatches, WorkCounts& work);
  /// Sums over ranks of statistics_, work and the wish to stop, in one collective.
  bool sum_over_ranks(WorkCounts& work, bool stop_asked);
  void expect_good_loss(std::int64_t step, double nll_of_rank, const StepLimits& limits, bool stop_asked);
  /// Every faults.compare_every steps, and in each step behind which a checkpoint may be written: so every published
  /// one is of weights that were equal.
  bool compares_in(std::int64_t step, bool stop_asked) const;

  const Deck& deck_;
  const Communicators& communicators_;
  const Kernels& kernels_;
  BatchLimits limits_;
  std::int64_t microbatches_ = 1;     // of this rank in a step
  std::optional<GradientSums> sums_;  // where leaves shape the sums
  const MemorySource& memory_ = *kernels_.transfer.memory;
  Arena weights_{"weights", memory_}, gradients_{"gradients", memory_}, activations_{"activations", memory_},
      scratch_{"scratch", memory_}, optimizer_state_{"optimizer state", memory_}, copies_{"checkpoint copy"};
  std::vector<Arena*> arenas_{&weights_, &gradients_, &activations_, &scratch_, &optimizer_state_};
  KernelContext context_;
  ParameterStore store_;
  Model model_;
  Optimizer optimizer_;
  std::optional<BackgroundWriter> writer_;
  StepStatistics statistics_;
};

/// The compute type of run.precision.
DType compute_type(const RunDeck& run);

}  // namespace flanmoe
