#include "data/span_corruption.hpp"

#include <algorithm>
#include <cmath>

#include "base/error.hpp"

namespace flanmoe {

SpanLengths span_lengths(std::int64_t tokens, double density, double mean_span) {
  FLANMOE_EXPECT(tokens >= 1, "a piece of {} tokens", tokens);
  // Inputs: the token and EOS. Targets: the sentinel that stands for it and EOS.
  if (tokens == 1) return {0, 0, 2, 2};
  SpanLengths lengths;
  // nearbyint rounds half to even, as Python's round() does.
  lengths.noise = std::clamp<std::int64_t>(std::int64_t(std::nearbyint(double(tokens) * density)), 1, tokens - 1);
  const std::int64_t kept = tokens - lengths.noise;
  lengths.spans = std::clamp<std::int64_t>(std::int64_t(std::nearbyint(double(lengths.noise) / mean_span)), 1,
                                           std::min(lengths.noise, kept));
  lengths.inputs = kept + lengths.spans + 1;
  lengths.targets = lengths.noise + lengths.spans + 1;
  return lengths;
}

std::int64_t longest_piece(std::int64_t input_length, std::int64_t target_length, double density, double mean_span) {
  const auto fits = [&](std::int64_t tokens) {
    const SpanLengths lengths = span_lengths(tokens, density, mean_span);
    return lengths.inputs <= input_length && lengths.targets <= target_length;
  };
  // Neither length shrinks as a piece grows, so the first that does not fit ends the search.
  std::int64_t tokens = 1;
  while (fits(tokens + 1)) ++tokens;
  return tokens > 1 ? tokens : 0;
}

std::vector<std::int64_t> random_partition(std::int64_t items, std::int64_t parts, const RandomKey& key,
                                           std::uint64_t row) {
  FLANMOE_EXPECT(parts >= 1 && parts <= items, "{} items in {} parts", items, parts);
  // Choose parts-1 of the items-1 places between items, by selection sampling: a place is taken with probability
  // (still needed) / (places left), which makes every choice equally likely.
  std::vector<std::int64_t> lengths;
  lengths.reserve(std::size_t(parts));
  std::int64_t needed = parts - 1, begin = 0;
  for (std::int64_t place = 1; place < items && needed > 0; ++place) {
    if (std::int64_t(key.below(std::uint64_t(items - place), row, std::uint32_t(place))) >= needed) continue;
    lengths.push_back(place - begin);
    begin = place;
    --needed;
  }
  lengths.push_back(items - begin);
  return lengths;
}

std::vector<bool> noise_mask(std::int64_t tokens, double density, double mean_span, const RandomKey& key,
                             std::uint64_t row) {
  std::vector<bool> mask(std::size_t(tokens), false);
  if (tokens == 1) return mask;
  const SpanLengths lengths = span_lengths(tokens, density, mean_span);
  RandomKey noise_key = key, kept_key = key;
  noise_key.layer = 1;
  kept_key.layer = 2;
  const auto noise = random_partition(lengths.noise, lengths.spans, noise_key, row);
  const auto kept = random_partition(tokens - lengths.noise, lengths.spans, kept_key, row);
  auto at = mask.begin();
  for (std::size_t s = 0; s < noise.size(); ++s) {
    at += kept[s];
    std::fill_n(at, noise[s], true);
    at += noise[s];
  }
  return mask;
}

void replace_runs(std::span<const std::int32_t> tokens, const std::vector<bool>& mask, bool drop,
                  std::int32_t first_sentinel, std::int32_t eos, TokenIds& out) {
  std::int32_t sentinel = first_sentinel;
  for (std::size_t i = 0; i < tokens.size(); ++i) {
    if (mask[i] != drop) {
      out.push_back(tokens[i]);
    } else if (i == 0 || mask[i - 1] != drop) {
      out.push_back(sentinel--);
    }
  }
  out.push_back(eos);
}

}  // namespace flanmoe
