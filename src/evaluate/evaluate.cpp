#include "evaluate/evaluate.hpp"

#include <filesystem>
#include <optional>

#include "base/log.hpp"
#include "base/timer.hpp"
#include "checkpoint/checkpoint.hpp"
#include "evaluate/journal.hpp"
#include "evaluate/scoreboard.hpp"
#include "evaluate/session.hpp"
#include "moe/packed_weights.hpp"
#include "parallel/together.hpp"

namespace flanmoe {
namespace {

/// A model with its memory, for inference.
class LoadedModel {
 public:
  LoadedModel(const Deck& deck, const ProcessGrid& grid, const Communicators& communicators,
              const KernelContext& context, BatchLimits limits, const std::string& checkpoint)
      : kernels_(kernels_for(deck.run.device)),
        store_(model_parameters(deck.model, deck.moe), grid.coordinates(),
               deck.run.precision == "bf16" ? DType::bf16 : DType::f32),
        context_{&scratch_, context.stream, context.staging} {
    const std::vector<PackedSizes> packed = packed_sizes(store_, deck.moe, kernels_, kAllPasses, /*backward=*/false);
    store_.lay(weights_, nullptr, {}, packed);
    weights_.commit();
    weights_.rewind();
    store_.lay(weights_, nullptr, {}, packed);
    model_ = std::make_unique<Model>(deck, store_, communicators, kernels_);
    model_->lay(activations_, scratch_, limits, false);
    activations_.commit();
    activations_.rewind();
    scratch_.commit();
    scratch_.rewind();
    model_->lay(activations_, scratch_, limits, false);
    context_.tf32 = deck.run.tf32();
    const auto mib = [](const Arena& arena) { return double(arena.measured()) / (1 << 20); };
    log_info("memory: weights {:.1f} + activations {:.1f} + scratch {:.1f} MiB on the first rank", mib(weights_),
             mib(activations_), mib(scratch_));
    info_ = read_weights(checkpoint, store_, context_, kernels_, communicators.world);
  }

  Predictor predictor(const DecodingOptions& options) { return predictor_of(*model_, context_, options); }
  const CheckpointInfo& info() const { return info_; }

 private:
  const Kernels& kernels_;
  const MemorySource& memory_ = *kernels_.transfer.memory;
  Arena weights_{"weights", memory_}, activations_{"activations", memory_}, scratch_{"scratch", memory_};
  ParameterStore store_;
  KernelContext context_;
  std::unique_ptr<Model> model_;
  CheckpointInfo info_;
};

void print_table(const Json& evaluation) {
  for (const auto& line : score_table(evaluation)) log_line(line);
}

/// True when RUN/evaluation.json is the result of the same inputs; prints it. Rank 0 only.
bool already_done(const std::string& path, const std::string& fingerprint) {
  if (!std::filesystem::exists(path)) return false;
  const Json old = read_json_file(path);
  if (old.value("fingerprint", std::string()) != fingerprint) return false;
  log_info("evaluation of the same deck, checkpoint and shards is done: {}", path);
  print_table(old);
  return true;
}

void write_results(const Deck& deck, const Json& evaluation, const std::vector<Prediction>& predictions) {
  publish_text_file(deck.run.dir + "/predictions.jsonl", prediction_lines(predictions));
  publish_text_file(deck.run.dir + "/evaluation.deck", print_deck(deck));
  // Last: its presence says that the others are complete.
  publish_text_file(deck.run.dir + "/evaluation.json", json_text(evaluation, 2) + "\n");
}

/// Ordinals of the examples that a killed evaluation has measured, ascending, on every rank. Collective.
std::vector<std::int64_t> done_before(const std::optional<PredictionJournal>& journal, const Communicator& world) {
  std::vector<std::int64_t> done;
  if (journal) {
    for (const Prediction& p : journal->done()) done.push_back(p.ordinal);
  }
  std::sort(done.begin(), done.end());
  auto count = std::int64_t(done.size());
  world.broadcast(std::span(&count, 1), 0);
  done.resize(std::size_t(count));
  if (count > 0) world.broadcast(std::span(done), 0);
  return done;
}

}  // namespace

std::string find_weights(const RunDeck& run) {
  const std::string from = run.init_from.empty() ? run.dir : run.init_from;
  if (std::filesystem::exists(from + "/checkpoint.h5")) return from;
  if (const auto newest = newest_checkpoint(from)) return *newest;
  usage_fail(
      "{}: {} is no checkpoint folder and holds no published checkpoint (looked for {}/checkpoint.h5 and "
      "{}/checkpoints/step-*)",
      run.init_from.empty() ? "run.dir" : "run.init_from", from, from, from);
}

Outcome run_evaluation(const Deck& deck, const ProcessGrid& grid, const Communicators& communicators,
                       const KernelContext& context) {
  const Communicator& world = communicators.world;
  const double start = seconds_now();
  const StopRequest stop(deck.run);

  // 1. What is measured, and whether that was done before, or begun.
  std::string checkpoint;
  on_root(world, [&] { checkpoint = find_weights(deck.run); });
  checkpoint = world.broadcast(checkpoint, 0);
  std::optional<EvaluationSession> session;
  together(world, [&] {
    session.emplace(deck);
    session->check_weights(read_checkpoint_info(checkpoint).tokenizer_fingerprint, "run.init_from: " + checkpoint);
  });
  const std::string result = deck.run.dir + "/evaluation.json";
  std::string fingerprint;
  std::optional<PredictionJournal> journal;  // rank 0
  std::int32_t done = 0;
  on_root(world, [&] {
    fingerprint = session->fingerprint(identity_of(checkpoint + "/checkpoint.h5"));
    done = already_done(result, fingerprint);
    if (done != 0) return;
    std::filesystem::create_directories(deck.run.dir);
    journal.emplace(deck.run.dir + "/predictions.unfinished", fingerprint);
  });
  if (world.all_reduce(done, ReduceOp::max) != 0) return Outcome::done;
  const auto before = done_before(journal, world);

  // 2. The model, with memory for the examples of this rank.
  PredictionTask task;
  together(world, [&] { task = session->task(world, before); });
  const BatchLimits limits = same_on_all_ranks(prediction_limits(task, deck.evaluate), world);
  LoadedModel model(deck, grid, communicators, context, limits, checkpoint);

  // 3. The measurement.
  log_info("evaluate {} examples of {} on {} ranks with {} (step {}){}", task.total, deck.evaluate.shards, world.size(),
           checkpoint, model.info().step,
           before.empty() ? "" : fmt::format("; {} others were measured before", before.size()));
  auto predictions = predict(
      task, deck.evaluate, model.predictor(session->decoding()), world,
      [&](const std::vector<Prediction>& round) { journal->append(round); }, &stop);
  if (!predictions) {
    log_info("stopped early; what is measured is kept: run the same command again to go on");
    return Outcome::stopped;
  }

  // 4. What came of it.
  on_root(world, [&] {
    predictions->insert(predictions->end(), journal->done().begin(), journal->done().end());
    sort_by_example(*predictions);
    const MeasuredWeights weights{checkpoint, model.info().step, model.info().tokens_seen};
    Json evaluation = evaluation_json(deck, weights, *predictions, seconds_now() - start);
    evaluation["fingerprint"] = fingerprint;
    evaluation["ranks"] = world.size();
    write_results(deck, evaluation, *predictions);
    journal->remove();
    print_table(evaluation);
    log_info("written: {}", result);
  });
  return Outcome::done;
}

}  // namespace flanmoe
