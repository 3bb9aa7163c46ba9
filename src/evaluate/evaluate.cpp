#include "evaluate/evaluate.hpp"

#include <filesystem>
#include <optional>

#include "base/log.hpp"
#include "base/timer.hpp"
#include "checkpoint/checkpoint.hpp"
#include "data/patterns.hpp"
#include "data/tokenizer.hpp"
#include "evaluate/examples.hpp"
#include "evaluate/predict.hpp"
#include "evaluate/scoreboard.hpp"
#include "parallel/together.hpp"

namespace flanmoe {
namespace {

constexpr int file_version = 2;

/// Path, size and time of change of a file: enough to notice that an evaluation is out of date.
std::string identity_of(const std::string& path) {
  const auto changed = std::filesystem::last_write_time(path).time_since_epoch().count();
  return fmt::format("{} {} {}\n", path, std::filesystem::file_size(path), changed);
}

std::string fingerprint_of(const Deck& deck, const std::string& checkpoint, const std::vector<std::string>& shards) {
  std::string text = print_deck(deck) + identity_of(checkpoint + "/checkpoint.h5") + identity_of(deck.data.tokenizer);
  for (const auto& shard : shards) text += identity_of(shard);
  return fmt::format("{:016x}", hash_name(text));
}

void check_tokenizer(const Deck& deck, const EvaluationExamples& examples, const Tokenizer& tokenizer,
                     const CheckpointInfo& info, const std::string& checkpoint) {
  const std::string& shards = examples.tokenizer().fingerprint;
  const std::string file = tokenizer.identity().fingerprint;
  if (file != shards) {
    usage_fail("data.tokenizer: {} has fingerprint {}, the shards of evaluate.shards were made with {}",
               deck.data.tokenizer, file, shards);
  }
  if (!info.tokenizer_fingerprint.empty() && info.tokenizer_fingerprint != shards) {
    usage_fail("run.init_from: {} was trained with tokenizer {}, the shards of evaluate.shards were made with {}",
               checkpoint, info.tokenizer_fingerprint, shards);
  }
  if (examples.tokenizer().vocabulary > deck.model.vocabulary) {
    usage_fail("model.vocabulary is {}, the tokenizer of evaluate.shards has {} pieces", deck.model.vocabulary,
               examples.tokenizer().vocabulary);
  }
}

PredictionTask make_task(const Deck& deck, const EvaluationExamples& examples, const Tokenizer& tokenizer,
                         const Communicator& world) {
  std::vector<std::int64_t> lengths(std::size_t(examples.size()));
  for (std::int64_t i = 0; i < examples.size(); ++i) lengths[std::size_t(i)] = examples.input_length(i);
  PredictionTask task;
  task.total = examples.size();
  task.longest_input = deck.batch.input_length;
  task.held_out = split_words(deck.data.exclude_tasks);
  task.stop = stop_strings(deck.evaluate);
  task.decode = [&tokenizer](const TokenIds& ids) { return tokenizer.decode(ids); };
  for (const auto& round : plan_rounds(lengths, world.size(), world.rank(), deck.evaluate.batch_rows)) {
    task.rounds.push_back(std::int64_t(round.size()));
    for (const auto i : round) {
      task.ordinals.push_back(i);
      task.ids.push_back(examples.id(i));
      task.infos.push_back(examples.task_info(i));
      task.examples.push_back(examples.read(i));
    }
  }
  return task;
}

DecodingOptions decoding_options(const Deck& deck, const PredictionTask& task) {
  const EvaluateDeck& e = deck.evaluate;
  DecodingOptions options{.max_new_tokens = e.max_new_tokens,
                          .beams = e.beams,
                          .length_penalty = e.length_penalty,
                          .temperature = e.temperature,
                          .top_k = e.top_k,
                          .top_p = e.top_p,
                          .seed = std::uint64_t(deck.run.seed)};
  if (task.stop.empty()) return options;
  options.ends = [&task](const TokenIds& ids) {
    const std::string text = task.decode(ids);
    return cut_at_stop(text, task.stop).size() < text.size();
  };
  return options;
}

/// A model with its memory, for inference.
class LoadedModel {
 public:
  LoadedModel(const Deck& deck, const ProcessGrid& grid, const Communicators& communicators, BatchLimits limits,
              const std::string& checkpoint)
      : kernels_(kernels_for(deck.run.device)),
        store_(model_parameters(deck.model, deck.moe), grid.coordinates(),
               deck.run.precision == "bf16" ? DType::bf16 : DType::f32) {
    store_.lay(weights_, nullptr);
    weights_.commit();
    weights_.rewind();
    store_.lay(weights_, nullptr);
    model_ = std::make_unique<Model>(deck, store_, communicators, kernels_);
    model_->lay(activations_, scratch_, limits, false);
    activations_.commit();
    activations_.rewind();
    scratch_.commit();
    scratch_.rewind();
    model_->lay(activations_, scratch_, limits, false);
    context_.scratch = &scratch_;
    info_ = read_weights(checkpoint, store_, context_, kernels_, communicators.world);
  }

  Predictor predictor(const DecodingOptions& options) {
    return {[this, options](const std::vector<GenerateRequest>& requests) {
              return generate(*model_, context_, requests, options);
            },
            [this](const std::vector<ScoreRequest>& requests) { return score_targets(*model_, context_, requests); }};
  }
  const CheckpointInfo& info() const { return info_; }

 private:
  const Kernels& kernels_;
  Arena weights_{"weights"}, activations_{"activations"}, scratch_{"scratch"};
  ParameterStore store_;
  KernelContext context_;
  std::unique_ptr<Model> model_;
  CheckpointInfo info_;
};

BatchLimits same_on_all_ranks(BatchLimits limits, const Communicator& world) {
  std::int64_t values[] = {limits.rows, limits.encoder_tokens, limits.decoder_tokens, limits.longest_input,
                           limits.longest_target};
  world.all_reduce(std::span<std::int64_t>(values), ReduceOp::max);
  return {values[0], values[1], values[2], values[3], values[4]};
}

Json make_evaluation(const Deck& deck, const CheckpointInfo& info, const std::string& checkpoint,
                     const std::vector<Prediction>& predictions, double seconds) {
  std::vector<Outcome> outcomes;
  std::int64_t generated = 0;
  for (const auto& p : predictions) {
    outcomes.push_back(p.outcome);
    generated += p.outcome.generated_tokens;
  }
  Json j;
  j["version"] = file_version;
  j["checkpoint"] = checkpoint;
  j["step"] = info.step;
  j["tokens_seen"] = info.tokens_seen;
  j["split"] = deck.evaluate.split;
  j["limit_per_task_and_variant"] = deck.evaluate.limit;
  j["max_new_tokens"] = deck.evaluate.max_new_tokens;
  j["examples"] = predictions.size();
  j["seconds"] = seconds;
  j["generated_tokens"] = generated;
  j["definitions"] = score_definitions();
  put_scores(j, outcomes);
  return j;
}

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
  std::string lines;
  for (const auto& p : predictions) lines += json_text(p.record, -1) + "\n";
  publish_text_file(deck.run.dir + "/predictions.jsonl", lines);
  publish_text_file(deck.run.dir + "/evaluation.deck", print_deck(deck));
  // Last: its presence says that the others are complete.
  publish_text_file(deck.run.dir + "/evaluation.json", json_text(evaluation, 2) + "\n");
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

void run_evaluation(const Deck& deck, const ProcessGrid& grid, const Communicators& communicators) {
  const Communicator& world = communicators.world;
  const double start = seconds_now();
  if (deck.data.tokenizer.empty()) usage_fail("data.tokenizer: an evaluation needs the SentencePiece model");

  // 1. What is measured, and whether that was done before.
  std::string checkpoint;
  on_root(world, [&] { checkpoint = find_weights(deck.run); });
  checkpoint = world.broadcast(checkpoint, 0);
  std::optional<EvaluationExamples> examples;
  std::optional<Tokenizer> tokenizer;
  together(world, [&] {
    examples.emplace(deck);
    tokenizer.emplace(deck.data.tokenizer);
    check_tokenizer(deck, *examples, *tokenizer, read_checkpoint_info(checkpoint), checkpoint);
  });
  const std::string result = deck.run.dir + "/evaluation.json";
  std::string fingerprint;
  std::int32_t done = 0;
  on_root(world, [&] {
    fingerprint = fingerprint_of(deck, checkpoint, examples->files());
    done = already_done(result, fingerprint);
  });
  if (world.all_reduce(done, ReduceOp::max) != 0) return;

  // 2. The model, with memory for the examples of this rank.
  PredictionTask task;
  together(world, [&] { task = make_task(deck, *examples, *tokenizer, world); });
  const BatchLimits limits = same_on_all_ranks(prediction_limits(task, deck.evaluate), world);
  LoadedModel model(deck, grid, communicators, limits, checkpoint);

  // 3. The measurement.
  log_info("evaluate {} examples of {} on {} ranks with {} (step {})", task.total, deck.evaluate.shards, world.size(),
           checkpoint, model.info().step);
  const auto predictions = predict(task, deck.evaluate, model.predictor(decoding_options(deck, task)), world);

  // 4. What came of it.
  on_root(world, [&] {
    Json evaluation = make_evaluation(deck, model.info(), checkpoint, predictions, seconds_now() - start);
    evaluation["fingerprint"] = fingerprint;
    evaluation["ranks"] = world.size();
    std::filesystem::create_directories(deck.run.dir);
    write_results(deck, evaluation, predictions);
    print_table(evaluation);
    log_info("written: {}", result);
  });
}

}  // namespace flanmoe
