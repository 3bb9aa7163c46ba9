#include "optimizer/optimizer.hpp"

#include <algorithm>
#include <array>
#include <cmath>
#include <string>
#include <utility>
#include <vector>

#include "base/timer.hpp"
#include "optimizer/block_updates.hpp"
#include "tensor/philox.hpp"

namespace flanmoe {
namespace {

constexpr std::array kPlacements = {Placement::dense, Placement::expert};

Tensor rows_of(const Tensor& matrix, const ParameterUnit& unit) { return matrix.slice_rows(unit.first_row, unit.rows); }

}  // namespace

struct Optimizer::State {
  State(const OptimizerDeck& optimizer, ParameterStore& parameters, const Communicators& ranks, const Kernels& device,
        const KernelContext& of_state, std::uint64_t seed_of_run)
      : deck(optimizer),
        store(parameters),
        communicators(ranks),
        kernels(device),
        context(of_state),
        seed(seed_of_run),
        adafactor(optimizer.name == "adafactor"),
        block_updates(parameters, ranks, device),
        started(std::size_t(parameters.buckets()), false) {
    pending.reserve(kPlacements.size() * started.size());
  }

  const OptimizerDeck deck;
  ParameterStore& store;
  const Communicators& communicators;
  const Kernels& kernels;
  KernelContext context;  // of the state; for moves to the host and back
  const std::uint64_t seed;
  const bool adafactor;
  std::vector<OwnedUnit> owned;   // trained; dense, then expert; in the order of the gradient buffer
  std::vector<OwnedUnit> blocks;  // the same, of those that Adafactor updates block by block
  std::vector<OwnedUnit> frozen;  // the same of what is frozen: masters only
  BlockUpdates block_updates;
  Tensor work;                            // of reduce_scatter_tree, the largest of its calls
  std::vector<bool> started;              // [bucket]: its sum over ranks in this step
  std::vector<Pending> pending;           // of those
  std::vector<std::size_t> first_square;  // [parameter]: place of its first matrix in `squares`
  std::vector<double> squares;            // sum of squares of the gradient of every matrix or block of the model
  // Lists for kernels, kept for their memory.
  std::vector<AdamWMatrix> adamw_list;
  std::vector<AdafactorMatrix> adafactor_list;
  std::vector<WeightCopy> copies;
  std::vector<Tensor> gradients;
  std::vector<double> sums;

  const ParameterSpec& spec(const OwnedUnit& unit) const { return spec(unit.unit); }
  const ParameterSpec& spec(const ParameterUnit& unit) const { return store.specs()[std::size_t(unit.parameter)]; }
  Tensor gradient(const ParameterUnit& unit) const {
    return rows_of(store.gradient(unit.parameter, unit.expert), unit);
  }
  Tensor weight(const ParameterUnit& unit) const {
    return rows_of(store.weight(unit.parameter).matrix(unit.expert), unit);
  }
  std::int64_t global_expert(const ParameterUnit& unit) const {
    return store.first_expert(unit.parameter) + unit.expert;
  }
  template <class F>
  void for_each_trained(F&& f) const {
    std::for_each(owned.begin(), owned.end(), f);
    std::for_each(blocks.begin(), blocks.end(), f);
  }
  const Communicator& replicas(Placement placement) const {
    return placement == Placement::dense ? communicators.world : communicators.data;
  }
  std::size_t square_index(const ParameterUnit& unit) const {
    return first_square[std::size_t(unit.parameter)] + std::size_t(global_expert(unit) * spec(unit).blocks());
  }
  void lay_unit(OwnedUnit& unit, Arena& arena) const;
  void lay_frozen(OwnedUnit& unit, Arena& arena) const;
  void start_reduction(std::int64_t bucket);
  void finish_reductions();
  void reduce_gradients(KernelContext& context);
  double gradient_norm(KernelContext& context);
  AdafactorStep adafactor_step(std::int64_t step, double rate, double scale) const;
  void update(KernelContext& context, std::int64_t step, double rate, double scale);
  void write_working_weights(KernelContext& context, std::int64_t step);
  void add_copy(const ParameterUnit& unit, const Tensor& to, const Tensor& from);
  void publish(KernelContext& context, Placement placement, std::int64_t step);
  void publish_frozen(KernelContext& context, Placement placement);
};

Optimizer::Optimizer(const OptimizerDeck& deck, ParameterStore& store, const Communicators& communicators,
                     const Kernels& kernels, KernelContext context, std::uint64_t seed)
    : state_(std::make_unique<State>(deck, store, communicators, kernels, context, seed)) {
  State& s = *state_;
  FLANMOE_EXPECT(deck.name == "adafactor" || deck.name == "adamw", "optimizer.name = {}", deck.name);
  for (const Placement placement : kPlacements) {
    FLANMOE_EXPECT(s.replicas(placement).size() == store.replica_size(placement) &&
                       s.replicas(placement).rank() == store.replica_rank(placement),
                   "a store of rank {} of {} on rank {} of {} of communicator {}", store.replica_rank(placement),
                   store.replica_size(placement), s.replicas(placement).rank(), s.replicas(placement).size(),
                   s.replicas(placement).name());
    const int rank = store.replica_rank(placement);
    for (const ParameterUnit& unit : store.units(placement)) {
      const bool in_blocks = s.adafactor && s.spec(unit).block_rows > 0;
      FLANMOE_EXPECT(!in_blocks || s.spec(unit).factored(deck.factor_threshold), "{} has blocks and no factors",
                     s.spec(unit).name);
      if (unit.owner == rank) (in_blocks ? s.blocks : s.owned).push_back({unit, {}, {}, {}, {}, {}});
    }
    for (const ParameterUnit& unit : store.frozen_units(placement)) {
      if (unit.owner == rank) s.frozen.push_back({unit, {}, {}, {}, {}, {}});
    }
  }
  std::size_t squares = 0;
  for (const ParameterSpec& spec : store.specs()) {
    s.first_square.push_back(squares);
    squares += std::size_t(spec.experts * spec.blocks());
  }
  s.squares.resize(squares);
}

Optimizer::~Optimizer() = default;

void Optimizer::State::lay_unit(OwnedUnit& unit, Arena& arena) const {
  const ParameterSpec& s = spec(unit);
  const DType type = accumulate_dtype(store.compute());
  const std::int64_t rows = unit.unit.rows;
  unit.master = arena.allocate(type, rows, s.cols);
  if (s.balance_rate > 0.0) return;
  if (!adafactor) unit.m = arena.allocate(type, rows, s.cols);
  if (adafactor && s.factored(deck.factor_threshold)) {
    unit.row = arena.allocate(type, rows, 1);
    unit.col = arena.allocate(type, 1, s.cols);
  } else {
    unit.v = arena.allocate(type, rows, s.cols);
  }
}

void Optimizer::State::lay_frozen(OwnedUnit& unit, Arena& arena) const {
  const DType type = accumulate_dtype(store.compute());
  const Tensor& weight_eRC = store.weight(unit.unit.parameter);
  const ParameterSpec& s = spec(unit);
  if (weight_eRC.dtype != type) {
    unit.master = arena.allocate(type, unit.unit.rows, s.cols);  // what checkpoints hold is not rounded
  } else {
    // Has its shape while arenas only measure, too: who copies the state measures by it.
    unit.master = weight_eRC.absent() ? Tensor{nullptr, type, 1, unit.unit.rows, s.cols, s.cols} : weight(unit.unit);
  }
}

void Optimizer::lay(Arena& state, Arena& scratch) {
  State& s = *state_;
  std::size_t scratch_bytes = 0;
  for (auto* units : {&s.owned, &s.blocks}) {
    for (OwnedUnit& unit : *units) {
      s.lay_unit(unit, state);
      scratch_bytes = std::max(scratch_bytes, s.kernels.optimizer.scratch_bytes(unit.unit.rows, s.spec(unit).cols));
    }
  }
  scratch_bytes = std::max(scratch_bytes, s.block_updates.scratch_bytes(s.blocks));
  if (s.adafactor) s.block_updates.lay(state);
  for (OwnedUnit& unit : s.frozen) s.lay_frozen(unit, state);
  const DType type = accumulate_dtype(s.store.compute());
  std::int64_t received = 0;
  for (std::int64_t bucket = 0; bucket < s.store.buckets(); ++bucket) {
    for (const Placement placement : kPlacements) {
      const auto& sizes = s.store.segment_sizes(placement, bucket);
      received = std::max(received, Communicator::reduce_scatter_work(sizes, type));
    }
  }
  if (const auto& lookups = s.store.lookup_segments(); !lookups.empty()) {
    received = std::max(received, Communicator::reduce_scatter_work(lookups, type));
  }
  s.work = state.allocate(type, 1, received);
  if (!scratch.committed()) {
    const std::size_t mark = scratch.mark();
    scratch.allocate(DType::i32, 1, std::int64_t(scratch_bytes + 3) / 4);
    scratch.release(mark);
  }
}

void Optimizer::initialize(KernelContext& context, std::uint64_t seed) {
  State& s = *state_;
  HostRoom room(s.kernels.transfer);
  const auto initialize_master = [&](const OwnedUnit& unit) {
    initialize_matrix(room.like(unit.master), s.spec(unit), s.global_expert(unit.unit), seed, unit.unit.first_row);
    room.write(context, unit.master);
  };
  s.for_each_trained(initialize_master);
  std::for_each(s.frozen.begin(), s.frozen.end(), initialize_master);
  clear_moments(context);
  publish_weights(context, 0);
}

void Optimizer::clear_moments(KernelContext& context) {
  state_->for_each_trained([&](const OwnedUnit& unit) {
    for (const Tensor* moment : {&unit.m, &unit.v, &unit.row, &unit.col}) {
      if (moment->rows > 0) state_->kernels.elementwise.zero(context, *moment);
    }
  });
}

void Optimizer::publish_weights(KernelContext& context, std::int64_t step) {
  const PartScope part(Part::optimizer);
  for (const Placement placement : kPlacements) {
    state_->publish(context, placement, step);
    state_->publish_frozen(context, placement);
  }
  state_->store.forget_gradients();
}

Optimizer::StepResult Optimizer::step(KernelContext& context, std::int64_t step, double learning_rate,
                                      double norm_limit) {
  const PartScope part(Part::optimizer);
  State& s = *state_;
  StepResult result;

  // 1. Every owner gets the sum of its gradients over the replica group.
  s.reduce_gradients(context);
  // 2. The norm, the same on every rank, tells whether there is anything to go on with.
  result.gradient_norm = s.gradient_norm(context);
  result.finite = std::isfinite(result.gradient_norm);
  result.updated = result.finite && result.gradient_norm <= norm_limit;
  if (result.updated) {
    // 3. Owners update their masters.
    const double limit = s.deck.clip_norm;
    const double scale = limit > 0.0 && result.gradient_norm > limit ? limit / result.gradient_norm : 1.0;
    s.update(context, step, learning_rate, scale);
    // 4. Every rank gets the new weights; the gradient buffers carry them.
    for (const Placement placement : kPlacements) s.publish(context, placement, step + 1);
  }
  s.store.forget_gradients();
  return result;
}

void Optimizer::start_reduction(std::int64_t bucket) {
  const PartScope part(Part::optimizer);
  state_->start_reduction(bucket);
}

void Optimizer::discard_gradients() {
  state_->finish_reductions();
  state_->store.forget_gradients();
}

void Optimizer::State::start_reduction(std::int64_t bucket) {
  FLANMOE_EXPECT(!started[std::size_t(bucket)], "the sum of bucket {} was started before", bucket);
  started[std::size_t(bucket)] = true;
  for (const Placement placement : kPlacements) {
    if (store.bucket_size(placement, bucket) == 0) continue;
    // One after the other, which is why they share their work.
    pending.push_back(replicas(placement).start_reduce_scatter_tree(store.gradient_bucket(placement, bucket),
                                                                    store.segment_sizes(placement, bucket), work));
  }
}

void Optimizer::State::finish_reductions() {
  for (Pending& reduction : pending) reduction.finish();
  pending.clear();
  started.assign(started.size(), false);
}

void Optimizer::State::reduce_gradients(KernelContext& context) {
  for (std::int64_t bucket = 0; bucket < store.buckets(); ++bucket) {
    if (!started[std::size_t(bucket)]) start_reduction(bucket);
  }
  finish_reductions();
  if (store.lookup_flat().absent()) return;
  // A table's gradient by lookups has its own sum over all leaves, and joins the other one behind it.
  const int table = store.sums().table;
  communicators.world.reduce_scatter_tree(store.lookup_flat(), store.lookup_segments(), work);
  for_each_trained([&](const OwnedUnit& owner) {
    const ParameterUnit& unit = owner.unit;
    if (unit.parameter != table) return;
    kernels.elementwise.add(context, gradient(unit), rows_of(store.lookup_gradient(table), unit));
  });
}

/// One number per matrix or block, filled by its owner and zero elsewhere, so that the sum over ranks is exact in any
/// order; then one sum over them in the order of the model. Neither depends on who owns what.
double Optimizer::State::gradient_norm(KernelContext& context) {
  // Blocks of what is learnt, each with its place among the squares.
  const auto for_each_block = [&](auto&& f) {
    for_each_trained([&](const OwnedUnit& owned_unit) {
      const ParameterUnit& unit = owned_unit.unit;
      if (spec(unit).balance_rate > 0.0) return;
      const std::int64_t block_rows = spec(unit).block_rows > 0 ? spec(unit).block_rows : unit.rows;
      std::size_t at = square_index(unit) + std::size_t(unit.first_row / block_rows);
      for (std::int64_t row = 0; row < unit.rows; row += block_rows) {
        f(at++, gradient(unit).slice_rows(row, std::min(block_rows, unit.rows - row)));
      }
    });
  };
  gradients.clear();
  for_each_block([&](std::size_t /*at*/, const Tensor& gradient) { gradients.push_back(gradient); });
  sums.resize(gradients.size());
  kernels.optimizer.sums_of_squares(context, sums, gradients);
  std::fill(squares.begin(), squares.end(), 0.0);
  std::size_t next = 0;
  for_each_block([&](std::size_t at, const Tensor& /*gradient*/) { squares[at] = sums[next++]; });
  communicators.world.all_reduce(std::span<double>(squares), ReduceOp::sum);
  double sum = 0.0;
  for (const double square : squares) sum += square;
  return std::sqrt(sum);
}

/// Of what decays.
AdafactorStep Optimizer::State::adafactor_step(std::int64_t step, double rate, double scale) const {
  return {.learning_rate = rate,
          .decay = 1.0 - std::pow(double(step + 1), -deck.decay_exponent),
          .clip_threshold = deck.clip_threshold,
          .multiply_by_parameter_scale = deck.multiply_by_parameter_scale,
          .weight_decay = deck.weight_decay,
          .gradient_scale = scale};
}

void Optimizer::State::update(KernelContext& context, std::int64_t step, double rate, double scale) {
  adamw_list.clear();
  adafactor_list.clear();
  for (const OwnedUnit& unit : owned) {
    const Tensor gradient = this->gradient(unit.unit);
    if (spec(unit).balance_rate > 0.0) {
      kernels.optimizer.balance(context, unit.master, gradient, spec(unit).balance_rate);
    } else if (adafactor) {
      adafactor_list.push_back({unit.master, gradient, unit.row, unit.col, unit.v, decays(spec(unit))});
    } else {
      adamw_list.push_back({unit.master, unit.m, unit.v, gradient, decays(spec(unit))});
    }
  }
  if (adafactor) {
    const AdafactorStep now = adafactor_step(step, rate, scale);
    kernels.optimizer.adafactor(context, adafactor_list, now);
    block_updates.update(context, blocks, now);
  } else {
    kernels.optimizer.adamw(context, adamw_list,
                            {.learning_rate = rate,
                             .beta1 = deck.beta1,
                             .beta2 = deck.beta2,
                             .epsilon = deck.epsilon,
                             .weight_decay = deck.weight_decay,
                             .step = step,
                             .gradient_scale = scale});
  }
}

void Optimizer::State::add_copy(const ParameterUnit& unit, const Tensor& to, const Tensor& from) {
  copies.push_back(
      {to, from, hash_name(spec(unit).name), std::uint32_t(global_expert(unit)), unit.first_row * spec(unit).cols});
}

/// Does what add_copy asked for. Masters are fp32 wherever they go but to bf16 working weights, so those are rounded
/// from the same number, with the same random bits, on every rank that holds them.
void Optimizer::State::write_working_weights(KernelContext& context, std::int64_t step) {
  const RandomKey key{seed, RandomPurpose::rounding, std::uint32_t(step), 0};
  kernels.optimizer.write_weights(context, copies, deck.stochastic_rounding ? &key : nullptr);
  copies.clear();
}

/// Masters to the working weights of all replicas, through the gradient buffer where there is more than one.
void Optimizer::State::publish(KernelContext& context, Placement placement, std::int64_t step) {
  const bool alone = store.replica_size(placement) == 1;
  for_each_trained([&](const OwnedUnit& unit) {
    if (spec(unit).placement != placement) return;
    add_copy(unit.unit, alone ? weight(unit.unit) : gradient(unit.unit), unit.master);
  });
  write_working_weights(context, step);
  store.weights_changed(/*trained=*/true);
  if (alone) return;
  for (std::int64_t bucket = 0; bucket < store.buckets(); ++bucket) {
    if (store.bucket_size(placement, bucket) == 0) continue;
    replicas(placement).all_gather_segments(store.gradient_bucket(placement, bucket),
                                            store.segment_sizes(placement, bucket));
  }
  for (const ParameterUnit& unit : store.units(placement)) {
    add_copy(unit, weight(unit), gradient(unit));
  }
  write_working_weights(context, step);
}

/// Frozen masters to the working weights of all replicas; done once, before the first step, and rounded as for that one
/// whenever the run goes on: frozen weights do not change.
void Optimizer::State::publish_frozen(KernelContext& context, Placement placement) {
  for (const OwnedUnit& unit : frozen) {
    if (spec(unit).placement != placement) continue;
    const Tensor target = weight(unit.unit);
    if (target.data != unit.master.data) add_copy(unit.unit, target, unit.master);
  }
  write_working_weights(context, 0);
  store.weights_changed(/*trained=*/false);
  if (store.replica_size(placement) == 1) return;
  HostRoom room(kernels.transfer);
  for (const ParameterUnit& unit : store.frozen_units(placement)) {
    const Tensor rows = weight(unit);
    const bool own = unit.owner == store.replica_rank(placement);
    const Tensor here = own ? room.read(context, rows) : room.like(rows);
    replicas(placement).broadcast(std::span(static_cast<char*>(here.data), here.bytes()), unit.owner);
    if (!own) room.write(context, rows);
  }
}

void Optimizer::visit_state(const std::function<void(const StateTensor&)>& f) const {
  const auto visit = [&](const OwnedUnit& owned) {
    const ParameterUnit& unit = owned.unit;
    f({unit.parameter, unit.expert, "master", owned.master, unit.first_row});
    if (owned.m.rows > 0) f({unit.parameter, unit.expert, "m", owned.m, unit.first_row});
    if (owned.v.rows > 0) f({unit.parameter, unit.expert, "v", owned.v, unit.first_row});
    if (owned.row.rows > 0) f({unit.parameter, unit.expert, "row", owned.row, unit.first_row});
    if (owned.col.rows > 0) f({unit.parameter, unit.expert, "col", owned.col, 0, unit.first_row > 0});
  };
  state_->for_each_trained(visit);
  std::for_each(state_->frozen.begin(), state_->frozen.end(), visit);
}

void Optimizer::read_state(const std::function<void(const StateTensor&)>& f) const {
  State& s = *state_;
  HostRoom room(s.kernels.transfer);
  visit_state([&](StateTensor t) {
    t.tensor = room.read(s.context, t.tensor);
    f(t);
  });
}

void Optimizer::fill_state(bool masters_only, const std::function<void(const StateTensor&)>& f) {
  State& s = *state_;
  HostRoom room(s.kernels.transfer);
  visit_state([&](StateTensor t) {
    if (masters_only && std::string(t.kind) != "master") return;
    const Tensor there = std::exchange(t.tensor, room.like(t.tensor));
    f(t);
    room.write(s.context, there);
  });
}

void Optimizer::copy_state(const Tensor& copy, const Tensor& state) const {
  state_->kernels.transfer.download(state_->context, copy, state);
}

}  // namespace flanmoe
