#include "evaluate/session.hpp"

#include <algorithm>
#include <filesystem>

#include "base/error.hpp"
#include "data/patterns.hpp"
#include "evaluate/scoreboard.hpp"
#include "tensor/philox.hpp"

namespace flanmoe {
namespace {

// Raise it when the same inputs would be measured otherwise: what an older program left is then neither taken nor gone
// on with.
constexpr int file_version = 3;

const std::string& expect_tokenizer(const Deck& deck) {
  if (deck.data.tokenizer.empty()) usage_fail("data.tokenizer: an evaluation needs the SentencePiece model");
  return deck.data.tokenizer;
}

}  // namespace

EvaluationSession::EvaluationSession(const Deck& deck)
    : deck_(deck), stop_(stop_strings(deck.evaluate)), examples_(deck), tokenizer_(expect_tokenizer(deck)) {
  const std::string& shards = examples_.tokenizer().fingerprint;
  const std::string file = tokenizer_.identity().fingerprint;
  if (file != shards) {
    usage_fail("data.tokenizer: {} has fingerprint {}, the shards of evaluate.shards were made with {}",
               deck.data.tokenizer, file, shards);
  }
  if (examples_.tokenizer().vocabulary > deck.model.vocabulary) {
    usage_fail("model.vocabulary is {}, the tokenizer of evaluate.shards has {} pieces", deck.model.vocabulary,
               examples_.tokenizer().vocabulary);
  }
}

void EvaluationSession::check_weights(const std::string& tokenizer_fingerprint, const std::string& where) const {
  const std::string& shards = examples_.tokenizer().fingerprint;
  if (tokenizer_fingerprint.empty() || tokenizer_fingerprint == shards) return;
  usage_fail("{} was trained with tokenizer {}, the shards of evaluate.shards were made with {}", where,
             tokenizer_fingerprint, shards);
}

std::string EvaluationSession::fingerprint(const std::string& weights) const {
  Deck deck = deck_;
  // How long and how fast a session runs, and what is planned, changes no measurement.
  const RunDeck defaults;
  deck.plan = {};
  deck.run.stop_after_minutes = defaults.stop_after_minutes;
  deck.run.stop_before_minutes = defaults.stop_before_minutes;
  deck.run.watchdog_seconds = defaults.watchdog_seconds;
  deck.run.log_every = defaults.log_every;
  deck.run.threads = defaults.threads;
  std::string text = fmt::format("{} ", file_version) + print_deck(deck) + weights + identity_of(deck_.data.tokenizer);
  for (const auto& shard : examples_.files()) text += identity_of(shard);
  return fmt::format("{:016x}", hash_name(text));
}

PredictionTask EvaluationSession::task(const Communicator& world, const std::vector<std::int64_t>& done) const {
  std::vector<std::int64_t> left, lengths;
  for (std::int64_t i = 0; i < examples_.size(); ++i) {
    if (std::binary_search(done.begin(), done.end(), i)) continue;
    left.push_back(i);
    lengths.push_back(examples_.input_length(i));
  }
  PredictionTask task;
  task.total = std::int64_t(left.size());
  task.longest_input = deck_.batch.input_length;
  task.held_out = split_words(deck_.data.exclude_tasks);
  task.stop = stop_;
  task.decode = [this](const TokenIds& ids) { return tokenizer_.decode(ids); };
  for (const auto& round : plan_rounds(lengths, world.size(), world.rank(), deck_.evaluate.batch_rows)) {
    task.rounds.push_back(std::int64_t(round.size()));
    for (const auto place : round) {
      const std::int64_t i = left[std::size_t(place)];
      task.ordinals.push_back(i);
      task.ids.push_back(examples_.id(i));
      task.infos.push_back(examples_.task_info(i));
      task.examples.push_back(examples_.read(i));
    }
  }
  return task;
}

DecodingOptions EvaluationSession::decoding() const {
  const EvaluateDeck& e = deck_.evaluate;
  DecodingOptions options{.max_new_tokens = e.max_new_tokens,
                          .beams = e.beams,
                          .length_penalty = e.length_penalty,
                          .temperature = e.temperature,
                          .top_k = e.top_k,
                          .top_p = e.top_p,
                          .seed = std::uint64_t(deck_.run.seed)};
  if (stop_.empty()) return options;
  options.ends = [this](const TokenIds& ids) {
    const std::string text = tokenizer_.decode(ids);
    return cut_at_stop(text, stop_).size() < text.size();
  };
  return options;
}

std::string identity_of(const std::string& path) {
  const auto changed = std::filesystem::last_write_time(path).time_since_epoch().count();
  return fmt::format("{} {} {}\n", path, std::filesystem::file_size(path), changed);
}

BatchLimits same_on_all_ranks(BatchLimits limits, const Communicator& world) {
  std::int64_t values[] = {limits.rows, limits.encoder_tokens, limits.decoder_tokens, limits.longest_input,
                           limits.longest_target};
  world.all_reduce(std::span<std::int64_t>(values), ReduceOp::max);
  return {values[0], values[1], values[2], values[3], values[4]};
}

Json evaluation_json(const Deck& deck, const MeasuredWeights& weights, const std::vector<Prediction>& predictions,
                     double seconds) {
  std::vector<ExampleOutcome> outcomes;
  std::int64_t generated = 0;
  for (const auto& p : predictions) {
    outcomes.push_back(p.outcome);
    generated += p.outcome.generated_tokens;
  }
  Json j;
  j["version"] = file_version;
  j["checkpoint"] = weights.checkpoint.empty() ? Json(nullptr) : Json(weights.checkpoint);
  j["step"] = weights.step;
  j["tokens_seen"] = weights.tokens_seen;
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

std::string prediction_lines(const std::vector<Prediction>& predictions) {
  std::string lines;
  for (const auto& p : predictions) lines += json_text(p.record, -1) + "\n";
  return lines;
}

}  // namespace flanmoe
