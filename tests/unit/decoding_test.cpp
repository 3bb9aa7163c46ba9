// Sampling and beam search against probabilities and searches worked out apart from them.
#include "model/decoding.hpp"

#include <fmt/format.h>
#include <gtest/gtest.h>

#include <cmath>
#include <set>

#include "tensor/philox.hpp"

namespace flanmoe {
namespace {

using Logits = std::vector<double>;

/// A made-up language model: logits of the next token are a function of all tokens before it. Long texts are likely
/// enough to compete: `reluctance` is taken from the logit of EOS until three tokens stand.
Logits logits_after(const TokenIds& tokens, std::uint64_t seed, double reluctance, std::size_t vocabulary) {
  std::string name = std::to_string(seed);
  for (const auto id : tokens) name.append(",").append(std::to_string(id));
  Logits logits(vocabulary);
  for (std::size_t v = 0; v < vocabulary; ++v) {
    logits[v] = double(hash_name(fmt::format("{}:{}", name, v)) % 4001) / 1000 - 2;
  }
  if (tokens.size() < 3) logits[kEos] -= reluctance;
  return logits;
}

Logits log_probabilities(Logits logits, double scale) {
  double sum = 0;
  for (const double x : logits) sum += std::exp(scale * x);
  for (double& x : logits) x = scale * x - std::log(sum);
  return logits;
}

Generated run_beam_search(const DecodingOptions& options, std::uint64_t seed, double reluctance, double scale,
                          std::size_t vocabulary = 4) {
  BeamSearch search(options);
  for (std::int64_t step = 0; step < options.max_new_tokens && !search.done(); ++step) {
    for (std::size_t b = 0; b < search.live().size(); ++b) {
      const Logits logits = logits_after(search.live()[b].tokens, seed, reluctance, vocabulary);
      search.offer(std::int32_t(b), std::span<const double>(logits), scale);
    }
    search.advance();
  }
  return search.result();
}

struct Best {
  TokenIds tokens;
  double score = -INFINITY;
};

/// Every text of at most `longest` tokens, EOS among them, that ends.
void search_all(TokenIds& tokens, double log_likelihood, std::int64_t longest, double alpha, std::uint64_t seed,
                double reluctance, double scale, Best& best) {
  const Logits p = log_probabilities(logits_after(tokens, seed, reluctance, 4), scale);
  const auto length = std::int64_t(tokens.size()) + 1;
  const double score = (log_likelihood + p[kEos]) / std::pow((5 + double(length)) / 6, alpha);
  if (score > best.score) best = {tokens, score};
  if (length == longest) return;
  for (const std::int32_t v : {0, 2, 3}) {
    tokens.push_back(v);
    search_all(tokens, log_likelihood + p[std::size_t(v)], longest, alpha, seed, reluctance, scale, best);
    tokens.pop_back();
  }
}

TEST(BeamSearch, LengthPenaltyEqualsValuesByHand) {
  EXPECT_DOUBLE_EQ(length_penalty(0.6, 1), 1.0);
  EXPECT_NEAR(length_penalty(0.6, 7), 1.515716566510398, 1e-14);  // 2^0.6
  EXPECT_NEAR(length_penalty(1.0, 4), 1.5, 1e-15);
  EXPECT_DOUBLE_EQ(length_penalty(0.0, 50), 1.0);
}

TEST(BeamSearch, WithRoomForEverythingEqualsExhaustiveSearch) {
  std::set<std::size_t> lengths;
  for (std::uint64_t seed = 0; seed < 60; ++seed) {
    for (const double alpha : {0.0, 0.6, 2.0}) {
      const double reluctance = double(seed % 3) * 1.5, scale = seed % 2 == 0 ? 1.0 : 0.5;
      const DecodingOptions options{.max_new_tokens = 5, .beams = 81, .length_penalty = alpha};
      TokenIds none;
      Best best;
      search_all(none, 0, 5, alpha, seed, reluctance, scale, best);
      const Generated found = run_beam_search(options, seed, reluctance, scale);
      EXPECT_TRUE(found.ended);
      EXPECT_EQ(found.tokens, best.tokens) << "seed " << seed << " alpha " << alpha;
      lengths.insert(best.tokens.size());
    }
  }
  EXPECT_GE(lengths.size(), 4U) << "the best texts should be short and long";
}

/// Two steps by hand. Probabilities after nothing: a 0.5, b 0.4, EOS 0.1; after a: each of the others little, EOS 0.3;
/// after b: EOS 0.9. Greedy writes "a ..."; two beams find "b" with 0.36.
TEST(BeamSearch, FindsWhatGreedyMisses) {
  const auto step = [](BeamSearch& search, std::int32_t beam, Logits p) {
    for (double& x : p) x = std::log(x);
    search.offer(beam, std::span<const double>(p), 1.0);
  };
  const DecodingOptions options{.max_new_tokens = 3, .beams = 2, .length_penalty = 0};
  BeamSearch search(options);
  step(search, 0, {1e-9, 0.1, 0.5, 0.4});
  search.advance();
  ASSERT_EQ(search.live().size(), 2U);
  EXPECT_EQ(search.live()[0].tokens, TokenIds{2});
  EXPECT_EQ(search.live()[1].tokens, TokenIds{3});
  EXPECT_FALSE(search.done());  // finished: the empty text with 0.1, and 0.5 is alive
  step(search, 0, {0.35, 0.3, 0.2, 0.15});
  step(search, 1, {0.04, 0.9, 0.03, 0.03});
  search.advance();
  EXPECT_TRUE(search.done());  // the likeliest live beam has 0.175
  EXPECT_EQ(search.result().tokens, TokenIds{3});
  EXPECT_TRUE(search.result().ended);
}

TEST(BeamSearch, ParentsSayWhichBeamIsContinued) {
  const DecodingOptions options{.max_new_tokens = 4, .beams = 2, .length_penalty = 0};
  BeamSearch search(options);
  const Logits first = {0, -50, 1, -9}, likely = {-9, -50, 3, 2.5}, unlikely = {0, 0, 0, 0};
  search.offer(0, std::span<const double>(first), 1.0);
  search.advance();
  EXPECT_EQ(search.live()[1].tokens, TokenIds{0});
  search.offer(0, std::span<const double>(likely), 1.0);
  search.offer(1, std::span<const double>(unlikely), 1.0);
  search.advance();
  ASSERT_EQ(search.live().size(), 2U);
  EXPECT_EQ(search.live()[0].tokens, (TokenIds{2, 2}));
  EXPECT_EQ(search.live()[1].tokens, (TokenIds{2, 3}));
  EXPECT_EQ(search.live()[0].parent, 0);
  EXPECT_EQ(search.live()[1].parent, 0);
}

TEST(BeamSearch, AStopStringEndsAHypothesisAndNothingFinishedGivesTheLikeliest) {
  DecodingOptions options{.max_new_tokens = 3, .beams = 3, .length_penalty = 0.6};
  for (std::uint64_t seed = 0; seed < 20; ++seed) {
    options.ends = {};
    const Generated open = run_beam_search(options, seed, 1000, 1.0, 12);
    EXPECT_FALSE(open.ended);
    EXPECT_EQ(open.tokens.size(), 3U);
    // Tokens from 3 on end a text: of six candidates at least three do.
    options.ends = [](const TokenIds& ids) { return ids.back() >= 3; };
    const Generated stopped = run_beam_search(options, seed, 1000, 1.0, 12);
    EXPECT_TRUE(stopped.ended);
    ASSERT_FALSE(stopped.tokens.empty());
    EXPECT_GE(stopped.tokens.back(), 3);
  }
}

struct Sampler {
  std::vector<double> weight;
  std::vector<std::int32_t> order;
  std::int32_t operator()(const Logits& logits, double scale, const DecodingOptions& options, double uniform) {
    weight.resize(logits.size());
    order.resize(logits.size());
    return sample_token(std::span<const double>(logits), scale, options, uniform, {weight, order});
  }
};

/// Draws and compares frequencies with `expected`; tokens of probability 0 must never come.
void expect_frequencies(const Logits& logits, double scale, const DecodingOptions& options,
                        const std::vector<double>& expected) {
  constexpr int draws = 40000;
  std::vector<int> count(logits.size(), 0);
  Sampler sample;
  for (int i = 0; i < draws; ++i) {
    const double uniform = decoding_uniform(7, std::uint64_t(i) * 7919, i % 13);
    ++count[std::size_t(sample(logits, scale, options, uniform))];
  }
  for (std::size_t v = 0; v < logits.size(); ++v) {
    const double error = std::sqrt(expected[v] * (1 - expected[v]) / draws);
    EXPECT_NEAR(double(count[v]) / draws, expected[v], 4 * error) << "token " << v;
    EXPECT_TRUE(expected[v] > 0 || count[v] == 0) << "token " << v;
  }
}

const Logits logits = {1.0, 2.5, 0.0, 2.0, 2.0, -1.0, 0.5};

std::vector<double> distribution(double factor, const std::vector<std::size_t>& support) {
  std::vector<double> p(logits.size(), 0.0);
  double sum = 0;
  for (const auto v : support) sum += p[v] = std::exp(factor * logits[v]);
  for (double& x : p) x /= sum;
  return p;
}

TEST(Sampling, FrequenciesAreThoseOfTheDistribution) {
  expect_frequencies(logits, 1.0, {.temperature = 1.0}, distribution(1.0, {0, 1, 2, 3, 4, 5, 6}));
  expect_frequencies(logits, 0.5, {.temperature = 0.25}, distribution(2.0, {0, 1, 2, 3, 4, 5, 6}));
  expect_frequencies(logits, 1.0, {.temperature = 4.0}, distribution(0.25, {0, 1, 2, 3, 4, 5, 6}));
}

TEST(Sampling, TopKKeepsExactlyTheMostLikely) {
  expect_frequencies(logits, 1.0, {.temperature = 1.0, .top_k = 3}, distribution(1.0, {1, 3, 4}));
  // Of the equal logits 3 and 4 the lower id stays.
  expect_frequencies(logits, 1.0, {.temperature = 2.0, .top_k = 2}, distribution(0.5, {1, 3}));
  expect_frequencies(logits, 1.0, {.temperature = 1.0, .top_k = 1}, distribution(1.0, {1}));
  expect_frequencies(logits, 1.0, {.temperature = 1.0, .top_k = 99}, distribution(1.0, {0, 1, 2, 3, 4, 5, 6}));
}

TEST(Sampling, TopPKeepsTheFewestThatHoldTheShare) {
  const auto p = distribution(1.0, {0, 1, 2, 3, 4, 5, 6});
  const double two = p[1] + p[3], three = two + p[4];
  expect_frequencies(logits, 1.0, {.temperature = 1.0, .top_p = two - 1e-9}, distribution(1.0, {1, 3}));
  expect_frequencies(logits, 1.0, {.temperature = 1.0, .top_p = two + 1e-9}, distribution(1.0, {1, 3, 4}));
  expect_frequencies(logits, 1.0, {.temperature = 1.0, .top_p = three + 1e-9}, distribution(1.0, {0, 1, 3, 4}));
  expect_frequencies(logits, 1.0, {.temperature = 1.0, .top_p = 1e-9}, distribution(1.0, {1}));
  // A share of what top_k left: 1 and 3 hold more than 0.7 of {1, 3, 4}.
  const double left = two / three;
  expect_frequencies(logits, 1.0, {.temperature = 1.0, .top_k = 3, .top_p = left - 1e-9}, distribution(1.0, {1, 3}));
  expect_frequencies(logits, 1.0, {.temperature = 1.0, .top_k = 3, .top_p = left + 1e-9}, distribution(1.0, {1, 3, 4}));
}

TEST(Sampling, EndsOfTheUnitIntervalStayInside) {
  Sampler sample;
  for (const std::int64_t top_k : {0, 2}) {
    const DecodingOptions options{.temperature = 1.0, .top_k = top_k};
    EXPECT_EQ(sample(logits, 1.0, options, 0.0), top_k == 0 ? 0 : 1);
    EXPECT_EQ(sample(logits, 1.0, options, std::nextafter(1.0, 0.0)), top_k == 0 ? 6 : 3);
  }
}

TEST(Sampling, NumbersBelongToExampleAndPosition) {
  std::set<double> seen;
  for (std::uint64_t id = 0; id < 30; ++id) {
    for (std::int64_t position = 0; position < 30; ++position) {
      const double u = decoding_uniform(1, id, position);
      EXPECT_GE(u, 0.0);
      EXPECT_LT(u, 1.0);
      EXPECT_EQ(u, decoding_uniform(1, id, position));
      EXPECT_NE(u, decoding_uniform(2, id, position));
      seen.insert(u);
    }
  }
  EXPECT_EQ(seen.size(), 900U);
}

}  // namespace
}  // namespace flanmoe
