#include "model/decoding.hpp"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "base/error.hpp"
#include "tensor/philox.hpp"

namespace flanmoe {

double length_penalty(double alpha, std::int64_t length) { return std::pow((5.0 + double(length)) / 6.0, alpha); }

template <class T>
std::int32_t argmax(std::span<const T> logit_V) {
  return std::int32_t(std::max_element(logit_V.begin(), logit_V.end()) - logit_V.begin());
}

double decoding_uniform(std::uint64_t seed, std::uint64_t id, std::int64_t position) {
  const RandomKey key{.seed = seed, .purpose = RandomPurpose::decoding};
  const auto words = key.words(id, std::uint32_t(position));
  return double(((std::uint64_t{words[0]} << 32) | words[1]) >> 11) * 0x1.0p-53;
}

namespace {

/// Moves the most likely tokens, most likely first, to the front of order_V until `enough(count, weight so far)`.
/// Returns how many.
template <class T, class Enough>
std::size_t take_likeliest(std::span<const T> logit_V, SamplingWork work, Enough&& enough) {
  auto& order = work.order_V;
  std::iota(order.begin(), order.end(), 0);
  // A heap gives them one by one: sorting all of a large vocabulary would cost more than the few that are wanted.
  const auto less = [&](std::int32_t a, std::int32_t b) {
    const T x = logit_V[std::size_t(a)], y = logit_V[std::size_t(b)];
    return x < y || (x == y && a > b);
  };
  std::make_heap(order.begin(), order.end(), less);
  std::size_t taken = 0;
  double sum = 0;
  while (taken < order.size()) {
    std::pop_heap(order.begin(), order.end() - std::ptrdiff_t(taken), less);
    ++taken;
    sum += work.weight_V[std::size_t(order[order.size() - taken])];
    if (enough(taken, sum)) break;
  }
  std::reverse(order.begin(), order.end());
  return taken;
}

}  // namespace

template <class T>
std::int32_t sample_token(std::span<const T> logit_V, double logit_scale, const DecodingOptions& options,
                          double uniform, SamplingWork work) {
  const std::size_t vocabulary = logit_V.size();
  FLANMOE_EXPECT(vocabulary > 0 && work.weight_V.size() == vocabulary && work.order_V.size() == vocabulary &&
                     options.temperature > 0,
                 "sampling from {} logits with memory for {} at temperature {}", vocabulary, work.weight_V.size(),
                 options.temperature);
  const double largest = double(*std::max_element(logit_V.begin(), logit_V.end()));
  const double factor = logit_scale / options.temperature;
  double total = 0;
  for (std::size_t v = 0; v < vocabulary; ++v) {
    work.weight_V[v] = std::exp((double(logit_V[v]) - largest) * factor);
    total += work.weight_V[v];
  }
  std::size_t kept = vocabulary;
  const bool by_count = options.top_k > 0 && std::size_t(options.top_k) < vocabulary;
  if (by_count) {
    kept = take_likeliest(logit_V, work, [&](std::size_t count, double sum) {
      total = sum;
      return count == std::size_t(options.top_k);
    });
  } else if (options.top_p < 1) {
    kept = take_likeliest(logit_V, work, [&](std::size_t, double sum) { return sum >= options.top_p * total; });
  } else {
    std::iota(work.order_V.begin(), work.order_V.end(), 0);
  }
  double share = 0;
  for (std::size_t i = 0; i < kept; ++i) {
    share += work.weight_V[std::size_t(work.order_V[i])];
    if (options.top_p < 1 && share >= options.top_p * total) kept = i + 1;
  }
  // The token whose interval of the kept weight holds the number.
  double left = uniform * share;
  for (std::size_t i = 0; i + 1 < kept; ++i) {
    left -= work.weight_V[std::size_t(work.order_V[i])];
    if (left < 0) return work.order_V[i];
  }
  return work.order_V[kept - 1];
}

BeamSearch::BeamSearch(const DecodingOptions& options) : options_(options), live_(1) {
  candidates_.reserve(2 * std::size_t(options.beams) + 1);
}

bool BeamSearch::better(const Candidate& a, const Candidate& b) {
  if (a.log_likelihood != b.log_likelihood) return a.log_likelihood > b.log_likelihood;
  return std::pair(a.beam, a.token) < std::pair(b.beam, b.token);
}

template <class T>
void BeamSearch::offer(std::int32_t beam, std::span<const T> logit_V, double logit_scale) {
  const double largest = double(*std::max_element(logit_V.begin(), logit_V.end()));
  double sum = 0;
  for (const T logit : logit_V) sum += std::exp((double(logit) - largest) * logit_scale);
  const double base = live_[std::size_t(beam)].log_likelihood - std::log(sum);
  for (std::size_t v = 0; v < logit_V.size(); ++v) {
    const Candidate candidate{base + (double(logit_V[v]) - largest) * logit_scale, beam, std::int32_t(v)};
    const bool full = std::int64_t(candidates_.size()) == 2 * options_.beams;
    if (full && !better(candidate, candidates_.front())) continue;
    candidates_.push_back(candidate);
    std::push_heap(candidates_.begin(), candidates_.end(), better);
    if (!full) continue;
    std::pop_heap(candidates_.begin(), candidates_.end(), better);
    candidates_.pop_back();
  }
}

void BeamSearch::finish(TokenIds tokens, double log_likelihood, std::int64_t length) {
  const double score = log_likelihood / length_penalty(options_.length_penalty, length);
  if (finished_ && score <= best_score_) return;
  finished_ = true;
  best_score_ = score;
  best_ = std::move(tokens);
}

void BeamSearch::advance() {
  ++steps_;
  std::sort(candidates_.begin(), candidates_.end(), better);
  next_.clear();
  for (const Candidate& c : candidates_) {
    TokenIds tokens = live_[std::size_t(c.beam)].tokens;
    if (c.token != kEos) tokens.push_back(c.token);
    if (c.token == kEos || (options_.ends && options_.ends(tokens))) {
      finish(std::move(tokens), c.log_likelihood, steps_);
    } else if (std::int64_t(next_.size()) < options_.beams) {
      next_.push_back({std::move(tokens), c.log_likelihood, c.beam});
    }
  }
  candidates_.clear();
  std::swap(live_, next_);
  // Nothing that follows can score better than the likeliest live beam at the length that is punished least.
  const double bound =
      live_.empty() ? 0
                    : live_.front().log_likelihood / length_penalty(options_.length_penalty, options_.max_new_tokens);
  done_ = live_.empty() || (finished_ && best_score_ >= bound);
}

Generated BeamSearch::result() const {
  if (finished_) return {best_, true};
  FLANMOE_EXPECT(!live_.empty(), "a beam search without any hypothesis");
  return {live_.front().tokens, false};
}

template std::int32_t argmax(std::span<const float>);
template std::int32_t argmax(std::span<const double>);
template std::int32_t sample_token(std::span<const float>, double, const DecodingOptions&, double, SamplingWork);
template std::int32_t sample_token(std::span<const double>, double, const DecodingOptions&, double, SamplingWork);
template void BeamSearch::offer(std::int32_t, std::span<const float>, double);
template void BeamSearch::offer(std::int32_t, std::span<const double>, double);

}  // namespace flanmoe
