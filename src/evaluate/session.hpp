// What an evaluation measures, opened once: examples, tokenizer, and how texts are decoded.
#pragma once

#include <string>
#include <vector>

#include "data/tokenizer.hpp"
#include "deck/deck.hpp"
#include "evaluate/examples.hpp"
#include "evaluate/predict.hpp"

namespace flanmoe {

class EvaluationSession {
 public:
  /// Throws UsageError when the deck names no tokenizer, or shards, tasks and tokenizer do not go together.
  explicit EvaluationSession(const Deck& deck);

  /// Throws UsageError unless weights trained with this tokenizer (empty: not known) can be measured; `where` names
  /// them.
  void check_weights(const std::string& tokenizer_fingerprint, const std::string& where) const;
  const EvaluationExamples& examples() const { return examples_; }
  /// Hash of the deck, of which files are read, and of `weights`.
  std::string fingerprint(const std::string& weights) const;
  /// The examples of this rank, without those in `done` (ordinals, ascending). Keeps a reference to the session.
  PredictionTask task(const Communicator& world, const std::vector<std::int64_t>& done) const;
  DecodingOptions decoding() const;

 private:
  const Deck& deck_;
  std::vector<std::string> stop_;
  EvaluationExamples examples_;
  Tokenizer tokenizer_;
};

/// Path, size and time of change of a file: enough to notice that an evaluation is out of date.
std::string identity_of(const std::string& path);

/// The largest limits of all ranks. Collective.
BatchLimits same_on_all_ranks(BatchLimits limits, const Communicator& world);

/// Where the weights come from.
struct MeasuredWeights {
  std::string checkpoint;  // empty: of a training under way
  std::int64_t step = 0, tokens_seen = 0;
};
/// evaluation.json.
Json evaluation_json(const Deck& deck, const MeasuredWeights& weights, const std::vector<Prediction>& predictions,
                     double seconds);
/// predictions.jsonl.
std::string prediction_lines(const std::vector<Prediction>& predictions);

}  // namespace flanmoe
