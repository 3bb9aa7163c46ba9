// Span corruption and prefix language modelling: how a piece of text becomes inputs and targets. The span algorithm is
// that of T5 (Raffel et al. 2020; t5.data.preprocessors: random_spans_helper, random_spans_noise_mask,
// noise_span_to_unique_sentinel, nonnoise_span_to_unique_sentinel).
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "data/shard.hpp"
#include "tensor/philox.hpp"

namespace flanmoe {

/// What becomes of a piece of text; lengths count the EOS that ends both sides.
struct SpanLengths {
  std::int64_t noise = 0;  // corrupted tokens
  std::int64_t spans = 0;  // runs of them: sentinels on each side
  std::int64_t inputs = 0, targets = 0;
};

/// noise = round(tokens * density), spans = round(noise / mean_span), both rounded half to even; at least one of each
/// and one token kept. One token alone cannot be corrupted and stays as it is.
SpanLengths span_lengths(std::int64_t tokens, double density, double mean_span);

/// The longest piece whose inputs fit input_length and whose targets fit target_length; 0 when none does.
std::int64_t longest_piece(std::int64_t input_length, std::int64_t target_length, double density, double mean_span);

/// Lengths of `parts` non-empty runs that sum to `items`; every such partition is equally likely. Random numbers come
/// from `key` at row `row`.
std::vector<std::int64_t> random_partition(std::int64_t items, std::int64_t parts, const RandomKey& key,
                                           std::uint64_t row);

/// true where a token is corrupted. Runs alternate, beginning with kept tokens, so a piece always ends in noise.
std::vector<bool> noise_mask(std::int64_t tokens, double density, double mean_span, const RandomKey& key,
                             std::uint64_t row);

/// Each run of tokens where mask == drop becomes one sentinel, counting down from first_sentinel; EOS is appended.
void replace_runs(std::span<const std::int32_t> tokens, const std::vector<bool>& mask, bool drop,
                  std::int32_t first_sentinel, std::int32_t eos, TokenIds& out);

}  // namespace flanmoe
