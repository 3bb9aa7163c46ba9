#include "train/trainer.hpp"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "base/timer.hpp"
#include "model/freeze.hpp"
#include "moe/packed_weights.hpp"
#include "tensor/checksum.hpp"
#include "tensor/philox.hpp"
#include "train/replicas.hpp"

namespace flanmoe {
namespace {

BatchLimits limits_of(const Deck& deck, const ProcessGrid& grid) {
  const BatchDeck& batch = deck.batch;
  const std::int64_t rows = RankRows::of(deck, grid).microbatch;
  return {.rows = rows,
          .encoder_tokens = rows * batch.input_length,
          .decoder_tokens = rows * batch.target_length,
          .longest_input = batch.input_length,
          .longest_target = batch.target_length,
          .leaves = uses_leaves(deck, grid.world_size()) ? leaves_of(deck) * rows / batch.rows : 0};
}

MoeLayerRecord layer_record(const MoeLayerStatistics& layer) {
  MoeLayerRecord record{.layer = layer.layer, .load_E = layer.load_E};
  const double choices = std::accumulate(layer.load_E.begin(), layer.load_E.end(), 0.0);
  if (choices > 0) {
    for (double& load : record.load_E) load /= choices;
    record.drop_fraction = layer.dropped / choices;
    record.copies_per_token = (choices - layer.dropped) / layer.tokens;
    record.unrouted_fraction = layer.unrouted / layer.tokens;
    record.router_entropy = layer.entropy / layer.tokens;
  }
  record.balance_loss = layer.balance;
  record.z_loss = layer.z;
  return record;
}

/// Copies that reached an expert, over all sparse layers.
double kept_copies(const StepStatistics& statistics) {
  double kept = 0;
  for (const MoeLayerStatistics& layer : statistics.moe) {
    kept += std::accumulate(layer.load_E.begin(), layer.load_E.end(), 0.0) - layer.dropped;
  }
  return kept;
}

}  // namespace

DType compute_type(const RunDeck& run) { return run.precision == "bf16" ? DType::bf16 : DType::f32; }

RankRows RankRows::of(const Deck& deck, const ProcessGrid& grid) {
  const BatchDeck& batch = deck.batch;
  const std::int64_t rows = batch.rows / grid.world_size();
  const std::int64_t microbatch = batch.microbatch_rows == 0 ? rows : batch.microbatch_rows;
  return {.first = rows * grid.world_rank(), .rows = rows, .microbatch = microbatch};
}

Trainer::Trainer(const Deck& deck, const ProcessGrid& grid, const Communicators& communicators, KernelContext context)
    : deck_(deck),
      communicators_(communicators),
      kernels_(kernels_for(deck.run.device)),
      limits_(limits_of(deck, grid)),
      microbatches_(RankRows::of(deck, grid).rows / limits_.rows),
      sums_(leaf_sums(deck, grid)),
      context_{&scratch_, context.stream, context.staging},
      store_(training_parameters(deck), grid.coordinates(), compute_type(deck.run)),
      model_(deck, store_, communicators, kernels_),
      optimizer_(deck.optimizer, store_, communicators, kernels_, context_, std::uint64_t(deck.run.seed)) {
  context_.tf32 = deck.run.tf32();
  if (deck.checkpoint.background) {
    arenas_.push_back(&copies_);
    writer_.emplace(deck.run.dir, deck.checkpoint.keep, store_, optimizer_, communicators.world);
  }
  lay();
}

void Trainer::lay() {
  store_.lay(weights_, &gradients_, sums_.value_or(GradientSums{}),
             packed_sizes(store_, deck_.moe, kernels_, microbatches_, /*backward=*/true));
  optimizer_.lay(optimizer_state_, scratch_);
  model_.lay(activations_, scratch_, limits_, /*training=*/true);
  if (writer_) writer_->lay(copies_);
}

void Trainer::commit_memory() {
  for (Arena* arena : arenas_) {
    arena->commit();
    arena->rewind();
  }
  lay();
}

std::size_t Trainer::arena_bytes() const {
  std::size_t bytes = 0;
  for (const Arena* arena : arenas_) bytes += arena->measured();
  return bytes;
}

void Trainer::start_from_seed() { optimizer_.initialize(context_, std::uint64_t(deck_.run.seed)); }

CheckpointInfo Trainer::start_from_weights(const std::string& checkpoint) {
  CheckpointInfo info =
      deck_.run.upcycle
          ? upcycle_checkpoint(checkpoint, store_, optimizer_, communicators_.world, std::uint64_t(deck_.run.seed))
          : read_checkpoint(checkpoint, store_, optimizer_, communicators_.world, /*weights_only=*/true);
  optimizer_.clear_moments(context_);
  optimizer_.publish_weights(context_, 0);
  return info;
}

CheckpointInfo Trainer::go_on_from(const std::string& checkpoint) {
  CheckpointInfo info = read_checkpoint(checkpoint, store_, optimizer_, communicators_.world, /*weights_only=*/false);
  optimizer_.publish_weights(context_, info.step);
  return info;
}

void Trainer::skip(std::int64_t step, bool stop_asked) {
  // The step did not come to its comparison, and a checkpoint may follow.
  if (deck_.faults.compare_every > 0) expect_equal_replicas(step, stop_asked);
  optimizer_.publish_weights(context_, step + 1);
}

/// A sum over pieces that are the same whoever owns them: blocks of matrices that have them, else matrices.
std::uint64_t Trainer::state_hash() const {
  std::uint64_t sum = 0;
  optimizer_.read_state([&](const StateTensor& s) {
    if (s.copy) return;
    const ParameterSpec& spec = store_.specs()[std::size_t(s.parameter)];
    const std::int64_t piece = spec.block_rows > 0 ? spec.block_rows : s.tensor.rows;
    for (std::int64_t row = 0; row < s.tensor.rows; row += piece) {
      const Tensor rows = s.tensor.slice_rows(row, std::min(piece, s.tensor.rows - row));
      const std::uint32_t bytes = checksum(rows);
      sum += hash_name(fmt::format("{} {} {} {} {}", spec.name, store_.first_expert(s.parameter) + s.expert, s.kind,
                                   s.first_row + row, bytes));
    }
  });
  return communicators_.world.all_reduce(sum, ReduceOp::sum);
}

std::string Trainer::save(const CheckpointInfo& info) {
  return write_checkpoint(deck_.run.dir, info, store_, optimizer_, communicators_.world, deck_.checkpoint.keep);
}

void Trainer::expect_equal_replicas(std::int64_t step, bool stop_asked) {
  const std::string difference = replica_difference(store_, optimizer_, communicators_, kernels_, context_);
  if (difference.empty()) return;
  optimizer_.discard_gradients();
  throw BadStep(step, difference, stop_asked, Fault::machine);
}

bool Trainer::compares_in(std::int64_t step, bool stop_asked) const {
  const std::int64_t every = deck_.faults.compare_every, save_every = deck_.checkpoint.every, done = step + 1;
  if (every == 0) return false;
  const bool may_save = stop_asked || done == deck_.run.steps || (save_every > 0 && done % save_every == 0);
  return may_save || done % every == 0;
}

bool Trainer::sum_over_ranks(WorkCounts& work, bool stop_asked) {
  std::vector<double> numbers = statistics_.pack();
  const std::size_t statistics = numbers.size();
  const auto counts = work.pack();
  numbers.insert(numbers.end(), counts.begin(), counts.end());
  numbers.push_back(stop_asked ? 1.0 : 0.0);
  communicators_.world.sum_tree(numbers);
  work = WorkCounts::unpack(numbers.data() + statistics);
  const bool anyone = numbers.back() > 0;
  numbers.resize(statistics);
  statistics_.unpack(numbers);
  return anyone;
}

void Trainer::expect_good_loss(std::int64_t step, double nll_of_rank, const StepLimits& limits, bool stop_asked) {
  // The sums are the same everywhere, so every rank takes the same way and the collective is safe.
  const bool finite = std::isfinite(statistics_.nll) && std::isfinite(statistics_.z);
  const double loss = statistics_.nll / statistics_.targets;
  if (finite && loss <= limits.loss) return;
  optimizer_.discard_gradients();
  if (finite) {
    throw BadStep(step, fmt::format("the loss is {:.4f}, the limit that recent steps set {:.4f}", loss, limits.loss),
                  stop_asked);
  }
  const std::vector<double> parts = communicators_.world.all_gather(nll_of_rank);
  std::size_t rank = 0;
  while (rank + 1 < parts.size() && std::isfinite(parts[rank])) ++rank;
  throw BadStep(step,
                fmt::format("the loss is not finite (sum over ranks {}, first bad part {} on rank {})", statistics_.nll,
                            parts[rank], rank),
                stop_asked);
}

void Trainer::add_up(const std::vector<PackedBatch>& microbatches, WorkCounts& work) {
  std::optional<LeafSums> tree;
  if (sums_) tree.emplace(context_, kernels_, store_);
  // Between devices the sums over ranks run beside the last backward pass, as its gradients become complete.
  const BucketListener start = [this](std::int64_t bucket) { optimizer_.start_reduction(bucket); };
  const bool beside = !tree && communicators_.world.overlaps();
  statistics_.reset();
  for (const PackedBatch& batch : microbatches) {
    if (tree) tree->begin_microbatch(statistics_);
    const bool last = &batch == &microbatches.back();
    model_.forward_backward(context_, batch, statistics_, beside && last ? start : BucketListener{});
    if (tree) tree->end_microbatch(statistics_);
    work += count_work(deck_.model, batch);
  }
  if (tree) tree->finish(statistics_);
  work.routed_copies = kept_copies(statistics_);
}

Trainer::StepOutcome Trainer::step(std::int64_t step, const std::vector<PackedBatch>& microbatches, bool stop_asked,
                                   const StepLimits& limits) {
  // 1. Gradients and sums of this rank.
  const Traffic before = communicators_.traffic();
  WorkCounts work;
  add_up(microbatches, work);

  // 2. Over all ranks; nothing is updated when the loss is bad.
  const double nll_of_rank = statistics_.nll;
  StepOutcome outcome;
  outcome.stop_asked = sum_over_ranks(work, stop_asked);
  outcome.work = work;
  expect_good_loss(step, nll_of_rank, limits, outcome.stop_asked);
  // An update hands the weights round anew: what they were while they were used is only to be seen before it.
  outcome.traffic = communicators_.traffic();
  outcome.traffic -= before;
  if (compares_in(step, outcome.stop_asked)) expect_equal_replicas(step, outcome.stop_asked);
  const Traffic compared = communicators_.traffic();

  // 3. Update.
  StepRecord& record = outcome.record;
  record.learning_rate = learning_rate(deck_.optimizer, step, deck_.run.steps);
  const Optimizer::StepResult result = optimizer_.step(context_, step, record.learning_rate, limits.norm);
  if (!result.updated) {
    const std::string what = result.finite ? fmt::format("is {:.4g}, the limit that recent steps set {:.4g}",
                                                         result.gradient_norm, limits.norm)
                                           : fmt::format("is not finite ({})", result.gradient_norm);
    throw BadStep(step, "the gradient norm " + what, outcome.stop_asked);
  }
  outcome.traffic += communicators_.traffic();
  outcome.traffic -= compared;

  // 4. What it did.
  const PackedBatch& batch = microbatches.front();
  record.step = step + 1;
  record.loss = statistics_.nll / statistics_.targets;
  record.z_loss = statistics_.z / statistics_.targets;
  record.accuracy = statistics_.hits / statistics_.targets;
  record.grad_norm = result.gradient_norm;
  record.tokens = batch.step_encoder_tokens + batch.step_target_tokens;
  for (const MoeLayerStatistics& layer : statistics_.moe) record.moe.push_back(layer_record(layer));
  return outcome;
}

}  // namespace flanmoe
