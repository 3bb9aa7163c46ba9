// Log-likelihoods of candidate targets.
#include <algorithm>

#include "model/model_state.hpp"

namespace flanmoe {
namespace {

/// Microbatches of candidate targets; several targets of a request share one input row where they may and fit.
struct ScoringBatch {
  PackedBatch batch;
  std::vector<std::int32_t> encoder_of_S;                        // decoder segment -> encoder segment
  std::vector<std::pair<std::size_t, std::size_t>> target_of_S;  // decoder segment -> (request, target)
};

class BatchCutter {
 public:
  /// `shared`: targets of a request share its input. In a decoder-only model each needs a sequence of its own.
  BatchCutter(const BatchLimits& limits, const std::vector<ScoreRequest>& requests, bool shared)
      : limits_(limits), shared_(shared) {
    for (std::size_t r = 0; r < requests.size(); ++r) add(r, requests[r]);
    flush();
  }
  std::vector<ScoringBatch> batches;

 private:
  void add(std::size_t r, const ScoreRequest& request) {
    const TokenIds input = with_eos(request.input, limits_.longest_input);
    bool encoded = false;  // the input stands in the current batch
    for (std::size_t t = 0; t < request.targets.size(); ++t) {
      const TokenIds target = with_eos(request.targets[t], limits_.longest_target);
      const RaggedSide& encoder = current_.batch.encoder;
      const RaggedSide& decoder = current_.batch.decoder;
      const std::int64_t more = encoded ? 0 : std::int64_t(input.size());
      if (std::int64_t(decoder.segment_count_S.size()) == limits_.rows ||
          encoder.tokens() + more > limits_.encoder_tokens ||
          decoder.tokens() + std::int64_t(target.size()) > limits_.decoder_tokens) {
        flush();
        encoded = false;
      }
      if (!encoded) append_row(current_.batch.encoder, input);
      encoded = shared_;
      TokenIds shifted(target.size(), kPad);
      std::copy(target.begin(), target.end() - 1, shifted.begin() + 1);
      append_row(current_.batch.decoder, shifted);
      current_.batch.target_T.insert(current_.batch.target_T.end(), target.begin(), target.end());
      current_.encoder_of_S.push_back(std::int32_t(current_.batch.encoder.segment_count_S.size()) - 1);
      current_.target_of_S.emplace_back(r, t);
    }
  }

  void flush() {
    if (!current_.target_of_S.empty()) batches.push_back(std::move(current_));
    current_ = {};
  }

  const BatchLimits& limits_;
  bool shared_;
  ScoringBatch current_;
};

ScoringBatch empty_batch() {
  ScoringBatch empty;
  empty.batch.encoder.row_first.assign(1, 0);
  empty.batch.decoder.row_first.assign(1, 0);
  return empty;
}

}  // namespace

std::vector<std::vector<double>> score_targets(Model& model, KernelContext& kernel,
                                               const std::vector<ScoreRequest>& requests) {
  Model::State& s = model.state();
  BatchCutter cutter(s.limits, requests, !s.decoder_only());
  const auto count = s.communicators.expert.all_reduce(std::int64_t(cutter.batches.size()), ReduceOp::max);
  while (std::int64_t(cutter.batches.size()) < count) cutter.batches.push_back(empty_batch());
  std::vector<std::vector<double>> scores;
  for (const ScoreRequest& request : requests) scores.emplace_back(request.targets.size(), 0.0);
  StepStatistics statistics;
  for (const ScoringBatch& b : cutter.batches) {
    const std::vector<float> nll = model.evaluate(kernel, b.batch, b.encoder_of_S, statistics);
    const RaggedSide& decoder = b.batch.decoder;
    for (std::size_t i = 0; i < b.target_of_S.size(); ++i) {
      double sum = 0.0;
      for (std::int32_t t = 0; t < decoder.segment_count_S[i]; ++t) {
        sum -= double(nll[std::size_t(decoder.segment_begin_S[i] + t)]);
      }
      scores[b.target_of_S[i].first][b.target_of_S[i].second] = sum;
    }
  }
  return scores;
}

}  // namespace flanmoe
