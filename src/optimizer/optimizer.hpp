// The optimizer step: reduce gradients, norm, clip, update the owned units, return the new weights to every rank.
#pragma once

#include <cstdint>
#include <functional>
#include <limits>
#include <memory>

#include "deck/deck.hpp"
#include "kernels/kernels.hpp"
#include "parallel/communicator.hpp"
#include "tensor/parameters.hpp"

namespace flanmoe {

/// Learning rate of optimizer step `step` (from 0) (paper facts 4.8, T5X utils.py):
/// constant: base. rsqrt: base / sqrt(max(step, warmup, 1)) (flat, then decay; no ramp). linear: ramp base*step/warmup,
/// then linear to base*final_fraction at total_steps. cosine: the same ramp, then half a cosine.
double learning_rate(const OptimizerDeck& deck, std::int64_t step, std::int64_t total_steps);

/// Reading and writing of an optimizer's own state by checkpoints: one call per tensor of an owned unit.
struct StateTensor {
  int parameter = 0;
  std::int64_t expert = 0;     // local expert index
  const char* kind = "";       // "master", "m", "v", "row", "col"
  Tensor tensor;               // fp32 (or fp64), rows x cols; a "row" factor is rows x 1, a "col" factor 1 x cols
  std::int64_t first_row = 0;  // of the matrix; a "col" factor has no part in this
  /// A "col" factor that all owners of a matrix have: to be filled like any, and written by the first of them, for
  /// whom this is false.
  bool copy = false;
};

/// Optimizer state of the units this rank owns, sharded over each replica group. `master` is the fp32 weight; it exists
/// for every owned unit, whatever the compute type. A frozen unit has nothing but its master, which is the working
/// weight itself where that has the same type, and is never written in a step.
class Optimizer {
 public:
  /// `context`: of the device that holds store and state; the host's has nothing in it. `seed`: of
  /// optimizer.stochastic_rounding.
  Optimizer(const OptimizerDeck& deck, ParameterStore& store, const Communicators& communicators, const Kernels&,
            KernelContext context = {}, std::uint64_t seed = 0);
  ~Optimizer();

  /// Lays masters, moments and communication work into the arena (measuring first, then committed; each time after the
  /// store), and makes the measuring scratch arena large enough for the updates of this rank.
  void lay(Arena& state, Arena& scratch);
  /// Initial weights: masters from initialize_matrix and zero moments, then to every rank as in step(). Collective.
  void initialize(KernelContext&, std::uint64_t seed);
  /// Moments as before the first step; masters stay.
  void clear_moments(KernelContext&);
  /// Copies masters to the working weights of all ranks (after a checkpoint was read into the masters). `step`: the
  /// one that comes next, so that weights rounded at random are those that the step before it left. Collective.
  void publish_weights(KernelContext&, std::int64_t step);

  struct StepResult {
    double gradient_norm = 0;  // before clipping; every parameter counted once; does not depend on owners
    bool finite = true;        // false: nothing was updated
    bool updated = true;       // false as well where the norm is above norm_limit
  };
  /// Collective. Begins to sum the gradients of a bucket over ranks, behind all that the device was given to compute:
  /// they hold this rank's sums, and nothing may be contributed to them before the next step. Each bucket once a step.
  void start_reduction(std::int64_t bucket);
  /// Collective. Reduces gradients (they hold this rank's sums) of the buckets that were not started, waits for those
  /// that were, updates, publishes weights, forgets gradients.
  StepResult step(KernelContext&, std::int64_t step, double learning_rate,
                  double norm_limit = std::numeric_limits<double>::infinity());
  /// Forgets the gradients of a step that is not taken, once nothing works on them any more.
  void discard_gradients();

  /// Calls f for every state tensor of every owned unit, frozen ones (masters only) last, in a fixed order. A matrix
  /// with several owners is visited by each in the rows that it owns.
  void visit_state(const std::function<void(const StateTensor&)>& f) const;
  /// The same with tensors in memory of the host, one at a time: what the state holds.
  void read_state(const std::function<void(const StateTensor&)>& f) const;
  /// What f fills becomes the state, of masters alone or of all tensors.
  void fill_state(bool masters_only, const std::function<void(const StateTensor&)>& f);
  /// `copy`, in memory of the host, = a tensor of the state.
  void copy_state(const Tensor& copy, const Tensor& state) const;

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace flanmoe
