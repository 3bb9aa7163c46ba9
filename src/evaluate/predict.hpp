// Runs the model over examples on all ranks and measures each of them.
#pragma once

#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "data/shard.hpp"
#include "deck/deck.hpp"
#include "evaluate/files.hpp"
#include "evaluate/scores.hpp"
#include "model/model.hpp"
#include "parallel/communicator.hpp"
#include "parallel/stop.hpp"

namespace flanmoe {

/// What is asked of a model. Both are collective over all ranks that share experts: called on every rank the same
/// number of times, with any number of inputs (0 too).
struct Predictor {
  /// The text that is written for each input.
  std::function<std::vector<Generated>(const std::vector<GenerateRequest>& requests)> generate;
  /// Log-likelihood of each target of each request, EOS included.
  std::function<std::vector<std::vector<double>>(const std::vector<ScoreRequest>&)> score;
};

/// The examples of an evaluation and how their tokens read.
struct PredictionTask {
  std::vector<Example> examples;       // of this rank, in the order of `rounds`
  std::vector<std::int64_t> ordinals;  // global number of each example
  std::vector<std::uint64_t> ids;      // names each example in random numbers, whatever else is evaluated
  std::vector<TaskInfo> infos;         // how each example is measured
  std::vector<std::int64_t> rounds;    // examples of this rank in each round; the same size on every rank
  std::int64_t total = 0;              // examples of all ranks, for the progress line
  std::int64_t longest_input = 0;      // longer ones lose their beginning
  std::vector<std::string> held_out;   // patterns of tasks excluded from training
  std::vector<std::string> stop;       // texts that end an answer
  std::function<std::string(const TokenIds&)> decode;
};

/// The text before the first of the stop strings that occurs in it.
std::string cut_at_stop(const std::string& text, const std::vector<std::string>& stop);

/// One measured example.
struct Prediction {
  std::int64_t ordinal = 0;
  ExampleOutcome outcome;
  Json record;  // a line of predictions.jsonl
};

/// Largest microbatch that the examples of this rank need: `rows` inputs are decoded together.
BatchLimits prediction_limits(const PredictionTask& task, const EvaluateDeck& deck);

Json to_json(const Prediction& prediction);
/// Throws Json::exception when it is none.
Prediction prediction_from_json(const Json& json);

/// By ordinal.
void sort_by_example(std::vector<Prediction>& predictions);

/// What a model with its memory answers; both are used by reference.
Predictor predictor_of(Model& model, KernelContext& context, const DecodingOptions& options);

/// Sees the predictions of a round, on rank 0.
using KeepRound = std::function<void(const std::vector<Prediction>&)>;

/// Collective over world. On rank 0: every prediction of every rank, by ordinal; on other ranks: empty.
/// Neither the number of ranks nor the batches decide what is measured on an example. Nothing, on every rank, when
/// `stop` was asked before the last round.
std::optional<std::vector<Prediction>> predict(const PredictionTask& task, const EvaluateDeck& deck,
                                               const Predictor& predictor, const Communicator& world,
                                               const KeepRound& keep = {}, const StopRequest* stop = nullptr);

}  // namespace flanmoe
