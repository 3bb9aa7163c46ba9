// Choosing the next token: greedily, by sampling or by beam search; apart from any model.
#pragma once

#include <cstdint>
#include <functional>
#include <span>
#include <vector>

#include "data/shard.hpp"

namespace flanmoe {

/// How a text is decoded. One beam without temperature is greedy decoding.
struct DecodingOptions {
  std::int64_t max_new_tokens = 64;
  std::int64_t beams = 1;  // more than 1: beam search
  double length_penalty =
      0.6;                 // alpha, at least 0: hypotheses are compared by log-likelihood / ((5 + length) / 6)^alpha
  double temperature = 0;  // more than 0: sampling from softmax(logits / temperature)
  std::int64_t top_k = 0;  // sampling from this many most likely tokens; 0: all
  double top_p = 1;        // sampling from the fewest most likely tokens that hold this share of what top_k left
  std::uint64_t seed = 1;  // of sampling
  /// True when the text of these tokens holds a stop string: they are the whole answer. Empty: never.
  std::function<bool(const TokenIds&)> ends = {};
};

/// A decoded text.
struct Generated {
  TokenIds tokens;     // without EOS
  bool ended = false;  // by EOS or a stop string, not by max_new_tokens
};

/// ((5 + length) / 6)^alpha; the length counts EOS (T5X; paper facts 4.13).
double length_penalty(double alpha, std::int64_t length);

/// Index of the first largest logit.
template <class T>
std::int32_t argmax(std::span<const T> logit_V);

/// The random number of one token: a function of the example and the position only, in [0, 1) with 53 bits.
double decoding_uniform(std::uint64_t seed, std::uint64_t id, std::int64_t position);

/// Memory for sample_token, V elements each.
struct SamplingWork {
  std::span<double> weight_V;
  std::span<std::int32_t> order_V;
};

/// The token at `uniform` of the distribution softmax(logit_scale * logits / temperature), cut to top_k and then to
/// top_p. Of equal logits the lower id counts as more likely.
template <class T>
std::int32_t sample_token(std::span<const T> logit_V, double logit_scale, const DecodingOptions& options,
                          double uniform, SamplingWork work);

/// Beam search for one input, as in T5X: each step considers the 2 * beams best continuations of all live beams; those
/// that end compete for the best finished hypothesis, the best others stay live. It is over when no live beam can beat
/// the best finished one any more.
class BeamSearch {
 public:
  struct Beam {
    TokenIds tokens;
    double log_likelihood = 0;
    std::int32_t parent = 0;  // beam of the step before that it continues
  };

  /// Keeps a reference to the options.
  explicit BeamSearch(const DecodingOptions& options);

  const std::vector<Beam>& live() const { return live_; }
  bool done() const { return done_; }

  /// One step: logits of every live beam, then advance().
  template <class T>
  void offer(std::int32_t beam, std::span<const T> logit_V, double logit_scale);
  void advance();

  /// The best finished hypothesis; when there is none, the likeliest live one.
  Generated result() const;

 private:
  struct Candidate {
    double log_likelihood = 0;
    std::int32_t beam = 0, token = 0;
  };
  static bool better(const Candidate& a, const Candidate& b);
  void finish(TokenIds tokens, double log_likelihood, std::int64_t length);

  const DecodingOptions& options_;
  std::vector<Beam> live_, next_;
  std::vector<Candidate> candidates_;  // a heap, the worst of the best on top
  std::int64_t steps_ = 0;
  bool done_ = false, finished_ = false;
  double best_score_ = 0;
  TokenIds best_;
};

}  // namespace flanmoe
