#include "train/train.hpp"

#include <omp.h>

#include <filesystem>
#include <memory>
#include <optional>

#include "base/log.hpp"
#include "base/timer.hpp"
#include "evaluate/in_training.hpp"
#include "model/freeze.hpp"
#include "parallel/stop.hpp"
#include "parallel/together.hpp"
#include "train/bad_steps.hpp"
#include "train/plan/prediction.hpp"
#include "train/resources.hpp"
#include "train/resume.hpp"
#include "train/roof.hpp"
#include "train/run_folder.hpp"
#include "train/saver.hpp"
#include "train/summary.hpp"
#include "train/tensorboard.hpp"
#include "train/trainer.hpp"

namespace flanmoe {
namespace {

std::string duration(double seconds) {
  const auto s = std::int64_t(seconds + 0.5);
  return s < 3600 ? fmt::format("{}:{:02}", s / 60, s % 60)
                  : fmt::format("{}:{:02}:{:02}", s / 3600, s / 60 % 60, s % 60);
}

class Loop {
 public:
  Loop(const Deck& deck, const ProcessGrid& grid, const Communicators& communicators, const KernelContext& context)
      : deck_(deck),
        grid_(grid),
        world_(communicators.world),
        communicators_(communicators),
        context_(context),
        paths_{deck.run.dir} {}

  Outcome run(Examples examples);

 private:
  // Set-up, in order; what can refuse comes before anything but the lock and the log is written.
  void open_data(Examples examples);
  void find_initial_weights();
  void prepare_memory();
  void predict();
  void enter_folder();
  void load(Start& start);
  CheckpointInfo read_own(Start& start);
  std::vector<const Arena*> arenas() const;
  void announce() const;
  void announce_sums() const;
  // The steps.
  Outcome steps_from(std::int64_t first);
  Trainer::StepOutcome one_step(Prefetcher& prefetcher, std::int64_t step);
  void write_line(const StepRecord& record);
  void report(const StepRecord& record);
  void checkpoint(std::int64_t steps, bool needed);
  Outcome take_steps(Start start);
  bool evaluate(std::int64_t steps, bool may_stop);
  Outcome stopped_after(std::int64_t steps);

  const Deck& deck_;
  const ProcessGrid& grid_;
  const Communicator& world_;
  const Communicators& communicators_;
  const KernelContext context_;  // of the device
  RunPaths paths_;
  StopRequest stop_{deck_.run};
  std::shared_ptr<BatchSource> source_;
  std::string initial_weights_;  // checkpoint folder; empty: from the seed
  std::optional<Trainer> trainer_;
  std::optional<Resume> resume_;
  std::optional<Saver> saver_;
  BadSteps bad_steps_{deck_.faults};
  std::optional<TrainingEvaluation> evaluation_;  // when evaluate.every asks for it
  std::optional<StepPrediction> prediction_;
  std::size_t base_bytes_ = 0;  // resident before the arenas
  SessionFacts session_;
  std::optional<RunFolder> folder_;     // rank 0
  std::optional<MetricsFile> metrics_;  // rank 0
  bool metrics_are_whole_ = true;
  std::optional<EventFile> events_;  // rank 0
  std::int64_t tokens_seen_ = 0;
  double reported_at_ = 0;  // progress line: time and tokens of the previous one
  std::int64_t reported_step_ = 0, tokens_since_report_ = 0;
};

void Loop::open_data(Examples examples) {
  together(world_, [&] { source_ = std::make_shared<BatchSource>(deck_, deck_.model.vocabulary); });
  if (examples == Examples::text_or_pairs) return;
  for (const MixtureEntry& task : source_->mixture()) {
    if (!task.text) continue;
    usage_fail("data.train: task {} is raw text; the {} stage needs inputs with targets (choose tasks by data.tasks)",
               task.task, deck_.run.stage);
  }
}

void Loop::find_initial_weights() {
  const std::string& from = deck_.run.init_from;
  if (from.empty()) return;
  on_root(world_, [&] {
    // A run that goes on from its own checkpoint needs nothing from where it once began.
    if (newest_checkpoint(deck_.run.dir)) return;
    initial_weights_ = from;
    if (!std::filesystem::exists(from + "/checkpoint.h5")) {
      const auto newest = newest_checkpoint(from);
      if (!newest) usage_fail("run.init_from: {} is neither a checkpoint folder nor a run folder that has one", from);
      initial_weights_ = *newest;
    }
    const CheckpointInfo info = read_checkpoint_info(initial_weights_);
    // Converted weights may not know their tokenizer.
    if (!info.tokenizer_fingerprint.empty() && info.tokenizer_fingerprint != source_->tokenizer_fingerprint()) {
      usage_fail("run.init_from: {} was trained with tokenizer {}, data.train is written with tokenizer {}",
                 initial_weights_, info.tokenizer_fingerprint, source_->tokenizer_fingerprint());
    }
    check_initial_weights(initial_weights_, model_parameters(deck_.model, deck_.moe), deck_.run.upcycle);
  });
  initial_weights_ = world_.broadcast(initial_weights_, 0);
}

void Loop::prepare_memory() {
  session_.threads = omp_get_max_threads();
  trainer_.emplace(deck_, grid_, communicators_, context_);
  for (const ParameterSpec& spec : trainer_->store().specs()) session_.parameters += spec.global_size();
  if (deck_.run.device == "cpu") {
    session_.roof_flops_per_second = measure_roof(trainer_->kernels(), compute_type(deck_.run), world_);
  }
  predict();
  if (deck_.evaluate.every > 0) {
    evaluation_.emplace(deck_, trainer_->store(), communicators_, trainer_->kernels(), context_,
                        source_->tokenizer_fingerprint());
  }
  base_bytes_ = resident_bytes();
  session_.announced_bytes = base_bytes_;
  for (const Arena* arena : arenas()) {
    (arena->on_host() ? session_.announced_bytes : session_.device_bytes) += arena->measured();
  }
}

void Loop::predict() {
  prediction_.emplace(deck_, grid_, trainer_->store());
  if (!deck_.plan.machine.empty()) {
    together(world_, [&] { prediction_->read_description(); });
  } else if (session_.roof_flops_per_second > 0) {
    prediction_->assume(session_.roof_flops_per_second / world_.size(),
                        measure_memory_speed(trainer_->kernels(), world_));
  }
}

void Loop::enter_folder() {
  on_root(world_, [&] {
    folder_.emplace(deck_.run.dir);
    configure_log(0, paths_.log());
  });
}

std::vector<const Arena*> Loop::arenas() const {
  std::vector<const Arena*> all = trainer_->arenas();
  if (!evaluation_) return all;
  for (const Arena* arena : evaluation_->arenas()) all.push_back(arena);
  return all;
}

void Loop::announce() const {
  std::array<double, 3> most = {to_mib(session_.announced_bytes), to_mib(base_bytes_), to_mib(session_.device_bytes)};
  world_.all_reduce(std::span<double>(most), ReduceOp::max);
  std::string parts, device_parts;
  for (const Arena* arena : arenas()) {
    const double mib = world_.all_reduce(to_mib(arena->measured()), ReduceOp::max);
    if (arena->on_host()) {
      parts += fmt::format("{} {:.1f} + ", arena->name(), mib);
    } else {
      device_parts += fmt::format("{}{} {:.1f}", device_parts.empty() ? "" : " + ", arena->name(), mib);
    }
  }
  log_info("{}: {} parameters, {} ranks ({} data x {} expert), {} threads each, {} {}", deck_.run.stage,
           session_.parameters, grid_.world_size(), grid_.data_size(), grid_.expert_size(), session_.threads,
           deck_.run.device, deck_.run.precision);
  if (const auto text = describe_frozen(trainer_->store().specs(), deck_.optimizer.freeze); !text.empty()) {
    log_info("{}", text);
  }
  announce_sums();
  log_info("memory: {}program {:.1f} = {:.1f} MiB per rank", parts, most[1], most[0]);
  if (!device_parts.empty()) log_info("memory of the GPU: {} = {:.1f} MiB per rank", device_parts, most[2]);
  const WorkCounts row = full_row(deck_);
  log_info("work: {:.4g} GFLOP per token in full rows{}",
           training_flops(deck_.model, deck_.moe, row).total() / (row.encoder_tokens + row.decoder_tokens) / 1e9,
           session_.roof_flops_per_second > 0
               ? fmt::format("; matrix products here reach {:.1f} GFLOP/s on all ranks together",
                             session_.roof_flops_per_second / 1e9)
               : "");
  if (const double seconds = prediction_->full_step().total(); seconds > 0) {
    log_info("predicted: {:.3g} s for a step of full rows{}", seconds, prediction_->is_rough() ? ", roughly" : "");
  }
  for (const MixtureEntry& task : source_->mixture()) {
    log_info("task {}: {} {}, {:.3g}% of draws", task.task, task.examples, task.text ? "pieces of text" : "examples",
             100 * task.rate);
  }
  for (const std::string& note : source_->mixture_notes()) log_info("{}", note);
}

/// Reads the checkpoint of the start, or, where it is damaged, the newest one that is not.
CheckpointInfo Loop::read_own(Start& start) {
  while (true) {
    std::optional<CheckpointInfo> info;
    try {
      info = trainer_->go_on_from(start.checkpoint);
    } catch (const SharedError& error) {  // all ranks know it
      resume_->pass_over(start.checkpoint, error.what());
      start = resume_->decide();
    }
    if (!info) continue;
    for (const DamagedCheckpoint& damaged : resume_->set_damaged_aside()) {
      saver_->note(
          {{"event", "checkpoint_damaged"}, {"step", damaged.step}, {"now_at", damaged.now_at}, {"why", damaged.why}});
    }
    return *info;
  }
}

void Loop::load(Start& start) {
  CheckpointInfo info;
  tokens_seen_ = 0;
  if (!start.checkpoint.empty()) {
    info = read_own(start);
    saver_->has_saved(start.steps);
    tokens_seen_ = info.tokens_seen;
    log_info("going on from {} ({} steps, {} tokens)", start.checkpoint, start.steps, info.tokens_seen);
  } else if (!initial_weights_.empty()) {
    info = trainer_->start_from_weights(initial_weights_);
    log_info("weights {} {} ({} steps, {} tokens)", deck_.run.upcycle ? "upcycled from the dense" : "from",
             initial_weights_, info.step, info.tokens_seen);
  } else {
    trainer_->start_from_seed();
    log_info("weights from seed {}", deck_.run.seed);
  }
  on_root(world_, [&] {
    write_file(paths_.deck(), print_deck(deck_));
    metrics_.emplace(paths_.metrics(), start.steps);
    events_.emplace(paths_.tensorboard(), paths_.metrics());
  });
  bad_steps_.recall(paths_.metrics(), world_);
}

void Loop::announce_sums() const {
  const std::int64_t most = deck_.reduction.leaves, leaves = leaves_of(deck_);
  if (most == 0) return;
  if (!uses_leaves(deck_, world_.size())) {
    if (leaves > 0) {
      log_info(
          "{} ranks do not divide the {} leaves of the batch (reduction.leaves = {}): sums agree with those of "
          "other layouts to rounding only",
          world_.size(), leaves, most);
    } else {
      log_info(
          "run.device = {}, batch.rows = {}, batch.microbatch_rows = {}, moe.group_rows = {} make no leaves "
          "(reduction.leaves = {}): sums agree with those of other layouts to rounding only",
          deck_.run.device, deck_.batch.rows, deck_.batch.microbatch_rows, deck_.moe.group_rows, most);
    }
    return;
  }
  const Kernels& kernels = trainer_->kernels();
  const DType compute = compute_type(deck_.run);
  const bool independent = rows_are_independent(kernels, compute) && leaves_are_independent(kernels, compute);
  if (world_.all_reduce(independent ? 1 : 0, ReduceOp::min) == 0) {
    log_shared_warning(
        "matrix products on this machine have other bits when more of them are computed together: reduction.leaves = "
        "{} does not make layouts agree to the bit",
        most);
    return;
  }
  log_info("sums: {} leaves of {} rows in one tree, the same bits on every number of ranks that divides them", leaves,
           deck_.batch.rows / leaves);
}

Trainer::StepOutcome Loop::one_step(Prefetcher& prefetcher, std::int64_t step) {
  const double start = seconds_now();
  std::vector<PackedBatch> microbatches;
  {
    const PartScope part(Part::data);
    microbatches = prefetcher.next();
  }
  Trainer::StepOutcome outcome;
  try {
    outcome = trainer_->step(step, microbatches, stop_.made(), bad_steps_.limits());
  } catch (const BadStep& bad) {
    if (bad.fault() != Fault::batch || !bad_steps_.is_again(step)) throw;
    trainer_->skip(step, bad.stop_asked());
    log_shared_warning("{}; bad again after going back: its batch is skipped", bad.what());
    saver_->note({{"event", "batch_skipped"}, {"step", step + 1}, {"why", bad.what()}});
    outcome.stop_asked = bad.stop_asked();
    return outcome;
  }
  bad_steps_.add(outcome.record.loss, outcome.record.grad_norm);
  StepRecord& record = outcome.record;
  record.step_seconds = seconds_now() - start;
  tokens_seen_ += record.tokens;
  record.tokens_seen = tokens_seen_;
  session_.traffic += outcome.traffic;
  if (session_.steps == 0) {
    session_.first_step_seconds = record.step_seconds;
    session_.first_step_parts = part_seconds();
  }
  session_.parts = part_seconds();
  session_.steps += 1;
  session_.tokens += record.tokens;
  session_.step_seconds += record.step_seconds;
  session_.work += outcome.work;
  return outcome;
}

/// Adds the line of a step to the metrics.
void Loop::write_line(const StepRecord& record) {
  try {
    metrics_->append(record);
    metrics_are_whole_ = true;
  } catch (const Error& error) {
    if (deck_.checkpoint.on_failure == "stop") throw;
    if (metrics_are_whole_) {
      log_warning("{}; the training goes on, and lines wait for room (checkpoint.on_failure = continue)", error.what());
      saver_->note({{"event", "metrics_failed"}, {"step", record.step}, {"why", error.what()}});
    }
    metrics_are_whole_ = false;
  }
}

void Loop::report(const StepRecord& record) {
  if (world_.rank() != 0) return;
  write_line(record);
  events_->append(record);
  tokens_since_report_ += record.tokens;
  const bool last = record.step == deck_.run.steps;
  if (record.step % deck_.run.log_every != 0 && !last) return;
  const double now = seconds_now(), seconds = now - reported_at_;
  const double left = seconds / double(record.step - reported_step_) * double(deck_.run.steps - record.step);
  log_progress(fmt::format("step {}/{}  loss {:.4f}  accuracy {:.3f}  grad norm {:.3g}  {:.0f} tokens/s  {} left",
                           record.step, deck_.run.steps, record.loss, record.accuracy, record.grad_norm,
                           double(tokens_since_report_) / seconds, duration(left)),
               last);
  reported_at_ = now;
  reported_step_ = record.step;
  tokens_since_report_ = 0;
}

/// `needed`: the run ends with it.
void Loop::checkpoint(std::int64_t steps, bool needed) {
  const CheckpointInfo info{.step = steps,
                            .tokens_seen = tokens_seen_,
                            .deck = print_deck(deck_),
                            .tokenizer_fingerprint = source_->tokenizer_fingerprint()};
  saver_->save(info, needed, [&] {
    folder_->expect_there();
    metrics_->flush_to_disk();  // a published checkpoint never knows more than the metrics
  });
}

/// Measures the weights after `steps` steps; the clocks of the training stand still meanwhile. False when it was
/// stopped.
bool Loop::evaluate(std::int64_t steps, bool may_stop) {
  const double start = seconds_now();
  const auto parts = part_seconds();
  const bool complete = evaluation_->measure(steps, tokens_seen_, may_stop ? &stop_ : nullptr);
  restore_part_seconds(parts);
  reported_at_ += seconds_now() - start;
  return complete;
}

Outcome Loop::stopped_after(std::int64_t steps) {
  if (!saver_->has(steps)) {
    if (deck_.faults.compare_every > 0) trainer_->expect_equal_replicas(steps - 1, true);
    checkpoint(steps, true);
  }
  saver_->finish(true);
  log_info("stopped early after step {} of {} with a checkpoint; run the same command again to go on", steps,
           deck_.run.steps);
  return Outcome::stopped;
}

Outcome Loop::steps_from(std::int64_t first) {
  const RankRows rows = RankRows::of(deck_, grid_);
  Prefetcher prefetcher(source_, first, deck_.run.steps, rows.first, rows.rows, rows.microbatch, deck_.data.prefetch);
  restore_part_seconds(session_.parts);  // neither loading nor a bad step is part of the session's seconds
  const std::int64_t waits_before = session_.data_waits;
  reported_at_ = seconds_now();
  reported_step_ = first;
  const std::int64_t every = deck_.checkpoint.every, measure_every = deck_.evaluate.every;
  // A run that was ended between its checkpoint and the evaluation of the same step.
  if (evaluation_ && first > 0 && first % measure_every == 0 && !evaluation_->is_done(first)) {
    if (!evaluate(first, true)) return stopped_after(first);
  }
  for (std::int64_t step = first; step < deck_.run.steps; ++step) {
    const Trainer::StepOutcome outcome = one_step(prefetcher, step);
    session_.data_waits = waits_before + prefetcher.waits();
    const std::int64_t done = step + 1;
    if (outcome.record.step == done) report(outcome.record);  // not for a batch that was skipped
    saver_->look_after();
    const bool last = done == deck_.run.steps;
    const bool save = last ? deck_.checkpoint.final : outcome.stop_asked || (every > 0 && done % every == 0);
    if (save) checkpoint(done, last || outcome.stop_asked);
    // A request that came while the checkpoint was written needs no further step and no second checkpoint.
    if (!last && (outcome.stop_asked || (save && stop_.made_anywhere(world_)))) return stopped_after(done);
    if (!evaluation_ || done % measure_every != 0) continue;
    saver_->finish(last && deck_.checkpoint.final);  // what is written must not wait unpublished for a long evaluation
    if (!evaluate(done, save || !last)) return stopped_after(done);
  }
  saver_->finish(deck_.checkpoint.final);
  return Outcome::done;
}

/// Goes back to the last checkpoint, or to the beginning, after a bad step, as the deck says.
Outcome Loop::take_steps(Start start) {
  while (true) {
    load(start);
    try {
      return steps_from(start.steps);
    } catch (const BadStep& bad) {
      saver_->finish(false);  // it holds a good state
      bad_steps_.forgive(bad);
      start = resume_->decide();
      log_shared_warning(
          "{}; going back to {}", bad.what(),
          start.checkpoint.empty() ? "the beginning" : fmt::format("the checkpoint of step {}", start.steps));
      saver_->note({{"event", "went_back"}, {"to_step", start.steps}, {"why", bad.what()}});
    }
  }
}

Outcome Loop::run(Examples examples) {
  open_data(examples);
  find_initial_weights();
  prepare_memory();
  enter_folder();
  resume_.emplace(deck_, source_->tokenizer_fingerprint(), world_);
  const Start start = resume_->decide();
  if (start.complete) {
    log_info("the run in {} is complete: all {} steps are done", deck_.run.dir, deck_.run.steps);
    return Outcome::done;
  }
  announce();
  if (deck_.run.stop_before_minutes > 0 && end_of_job() == 0) {
    log_shared_warning("run.stop_before_minutes: SLURM_JOB_END_TIME is not set, so nothing says when this job ends");
  }
  trainer_->commit_memory();
  if (evaluation_) evaluation_->commit_memory();
  saver_.emplace(deck_.checkpoint, *trainer_, world_, paths_.events());
  const Outcome outcome = take_steps(start);
  if (outcome == Outcome::done) {
    session_.saves = saver_->totals();
    // A run is not done before all of its metrics are there, room or not.
    on_root(world_, [&] { metrics_->flush_to_disk(); });
    write_summary(paths_.summary(), paths_.metrics(), deck_, session_, *prediction_, world_);
  }
  return outcome;
}

}  // namespace

Outcome train(const Deck& deck, const ProcessGrid& grid, const Communicators& communicators,
              const KernelContext& context, Examples examples) {
  return Loop(deck, grid, communicators, context).run(examples);
}

}  // namespace flanmoe
