#include "data/span_corruption.hpp"

#include <gtest/gtest.h>

#include <cmath>
#include <map>
#include <numeric>

namespace flanmoe {
namespace {

const RandomKey kKey{17, RandomPurpose::data_corruption, 3, 0};

// The published algorithm, array operation by array operation, on the partitions that the code under test drew.
struct Published {
  static std::int64_t round_half_even(double x) {
    const double low = std::floor(x), rest = x - low;
    const bool up = rest > 0.5 || (rest == 0.5 && std::fmod(low, 2.0) != 0.0);
    return std::int64_t(low) + (up ? 1 : 0);
  }
  /// random_spans_helper with one sentinel a span on both sides, for inputs alone.
  static std::pair<std::int64_t, std::int64_t> helper(std::int64_t inputs_length, double density, double mean_span) {
    const auto lengths_of = [&](std::int64_t tokens) {
      const std::int64_t noise = round_half_even(double(tokens) * density);
      const std::int64_t spans = round_half_even(double(noise) / mean_span);
      return std::pair(tokens - noise + spans + 1, noise + spans + 1);
    };
    std::int64_t tokens = inputs_length;
    while (lengths_of(tokens + 1).first <= inputs_length) ++tokens;
    return {tokens, lengths_of(tokens).second};
  }
  static std::vector<std::int64_t> cumulative_sum(std::vector<std::int64_t> x) {
    std::partial_sum(x.begin(), x.end(), x.begin());
    return x;
  }
  static std::vector<int> mask(std::int64_t length, double density, double mean_span, std::uint64_t row) {
    const std::int64_t original = length;
    length = std::max<std::int64_t>(length, 2);
    std::int64_t noise = round_half_even(double(length) * density);
    noise = std::min(std::max<std::int64_t>(noise, 1), length - 1);
    const std::int64_t spans = std::max<std::int64_t>(round_half_even(double(noise) / mean_span), 1);
    RandomKey noise_key = kKey, kept_key = kKey;
    noise_key.layer = 1;
    kept_key.layer = 2;
    const auto noise_lengths = random_partition(noise, spans, noise_key, row);
    const auto kept_lengths = random_partition(length - noise, spans, kept_key, row);
    std::vector<std::int64_t> interleaved;
    for (std::size_t s = 0; s < noise_lengths.size(); ++s) {
      interleaved.push_back(kept_lengths[s]);
      interleaved.push_back(noise_lengths[s]);
    }
    std::vector<std::int64_t> span_starts = cumulative_sum(interleaved);
    span_starts.pop_back();
    std::vector<std::int64_t> indicator(std::size_t(length), 0);
    for (const std::int64_t start : span_starts) indicator[std::size_t(start)] = 1;
    std::vector<int> is_noise;
    for (const std::int64_t number : cumulative_sum(indicator)) is_noise.push_back(int(number % 2));
    is_noise.resize(std::size_t(original));
    return is_noise;
  }
  /// noise_span_to_unique_sentinel.
  static TokenIds to_sentinels(const TokenIds& tokens, const std::vector<int>& mask, std::int32_t vocabulary) {
    TokenIds out;
    std::int32_t seen = 0;
    for (std::size_t i = 0; i < tokens.size(); ++i) {
      const bool before = i > 0 && mask[i - 1] == 1, here = mask[i] == 1;
      const bool first = here && !before, subsequent = here && before;
      if (first) ++seen;
      if (!subsequent) out.push_back(first ? vocabulary - seen : tokens[i]);
    }
    return out;
  }
};

TEST(SpanCorruption, LengthsAreThePublishedOnes) {
  const std::map<std::int64_t, std::pair<std::int64_t, std::int64_t>> published = {
      {128, {141, 29}}, {256, {284, 58}}, {512, {568, 114}}, {1024, {1137, 229}}, {2048, {2274, 456}}};
  for (const auto& [inputs, expected] : published) {
    EXPECT_EQ(longest_piece(inputs, 10000, 0.15, 3.0), expected.first);
    EXPECT_EQ(span_lengths(expected.first, 0.15, 3.0).targets, expected.second);
  }
  for (std::int64_t inputs = 16; inputs < 700; ++inputs) {
    const auto [tokens, targets] = Published::helper(inputs, 0.15, 3.0);
    ASSERT_EQ(longest_piece(inputs, 10000, 0.15, 3.0), tokens) << inputs;
    ASSERT_EQ(span_lengths(tokens, 0.15, 3.0).targets, targets) << inputs;
  }
}

TEST(SpanCorruption, RoundsHalfToEven) {
  EXPECT_EQ(span_lengths(30, 0.15, 3.0).noise, 4);    // 4.5
  EXPECT_EQ(span_lengths(10, 0.15, 3.0).noise, 2);    // 1.5
  EXPECT_EQ(span_lengths(100, 0.25, 10.0).spans, 2);  // 25 / 10
  EXPECT_EQ(span_lengths(100, 0.15, 10.0).spans, 2);  // 15 / 10
}

TEST(SpanCorruption, LongestPieceFitsBothSidesAndALongerOneDoesNot) {
  for (const double density : {0.05, 0.15, 0.5}) {
    for (std::int64_t inputs = 4; inputs < 90; inputs += 5) {
      for (std::int64_t targets = 4; targets < 90; targets += 3) {
        const std::int64_t tokens = longest_piece(inputs, targets, density, 3.0);
        ASSERT_GE(tokens, 2);
        const SpanLengths here = span_lengths(tokens, density, 3.0), more = span_lengths(tokens + 1, density, 3.0);
        ASSERT_TRUE(here.inputs <= inputs && here.targets <= targets);
        ASSERT_TRUE(more.inputs > inputs || more.targets > targets);
      }
    }
  }
  EXPECT_EQ(longest_piece(2, 64, 0.15, 3.0), 0);
}

TEST(SpanCorruption, EqualsThePublishedAlgorithm) {
  for (std::int64_t length = 1; length < 300; length = length < 40 ? length + 1 : length + 13) {
    for (std::uint64_t row = 0; row < 5; ++row) {
      TokenIds tokens(std::size_t(length), 0);
      for (std::int64_t i = 0; i < length; ++i) tokens[std::size_t(i)] = std::int32_t(10 + i);
      const std::vector<bool> mask = noise_mask(length, 0.15, 3.0, kKey, row);
      const std::vector<int> published_mask = Published::mask(length, 0.15, 3.0, row);
      ASSERT_EQ(std::vector<int>(mask.begin(), mask.end()), published_mask);
      std::vector<int> inverted = published_mask;
      for (int& bit : inverted) bit = 1 - bit;
      TokenIds inputs, targets;
      replace_runs(tokens, mask, true, 31999, 1, inputs);
      replace_runs(tokens, mask, false, 31999, 1, targets);
      TokenIds expected_inputs = Published::to_sentinels(tokens, published_mask, 32000);
      TokenIds expected_targets = Published::to_sentinels(tokens, inverted, 32000);
      expected_inputs.push_back(1);
      expected_targets.push_back(1);
      ASSERT_EQ(inputs, expected_inputs);
      ASSERT_EQ(targets, expected_targets);
      const SpanLengths lengths = span_lengths(length, 0.15, 3.0);
      ASSERT_EQ(std::int64_t(inputs.size()), lengths.inputs);
      ASSERT_EQ(std::int64_t(targets.size()), lengths.targets);
    }
  }
}

TEST(SpanCorruption, TargetsBeginWithASentinelAndEndInNoiseAndEos) {
  const TokenIds tokens = {10, 11, 12, 13, 14, 15, 16};
  const std::vector<bool> mask = {false, false, true, true, false, false, true};
  TokenIds inputs, targets;
  replace_runs(tokens, mask, true, 99, 1, inputs);
  replace_runs(tokens, mask, false, 99, 1, targets);
  EXPECT_EQ(inputs, (TokenIds{10, 11, 99, 14, 15, 98, 1}));
  EXPECT_EQ(targets, (TokenIds{99, 12, 13, 98, 16, 1}));
}

TEST(SpanCorruption, EveryPartitionIsEquallyLikely) {
  std::map<std::vector<std::int64_t>, int> counts;
  constexpr int kDraws = 20000;
  for (int row = 0; row < kDraws; ++row) {
    const auto parts = random_partition(6, 3, kKey, std::uint64_t(row));
    ASSERT_EQ(std::accumulate(parts.begin(), parts.end(), std::int64_t{0}), 6);
    for (const std::int64_t part : parts) ASSERT_GT(part, 0);
    ++counts[parts];
  }
  ASSERT_EQ(counts.size(), 10U);  // 5 places, 2 of them cut
  double chi_square = 0;
  for (const auto& [parts, count] : counts) chi_square += std::pow(count - kDraws / 10.0, 2) / (kDraws / 10.0);
  EXPECT_LT(chi_square, 27.9);  // 9 degrees of freedom, probability 0.001
}

}  // namespace
}  // namespace flanmoe
