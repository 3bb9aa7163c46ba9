#include "data/text_objective.hpp"

#include <algorithm>
#include <numeric>

#include "base/error.hpp"

namespace flanmoe {

std::int64_t length_of_piece(const MixtureTask& task, std::int64_t piece, std::int64_t piece_length) {
  return std::min(piece_length, task.stream_tokens - piece * piece_length);
}

TokenIds read_piece(const std::vector<ShardReader>& shards, const MixtureTask& task, std::int64_t piece,
                    std::int64_t piece_length) {
  TokenIds tokens;
  std::int64_t at = piece * piece_length;
  const std::int64_t end = at + length_of_piece(task, piece, piece_length);
  tokens.reserve(std::size_t(end - at));
  auto part = std::upper_bound(task.parts.begin(), task.parts.end(), at,
                               [](std::int64_t x, const TaskPart& p) { return x < p.stream_first; }) -
              1;
  for (; at < end; ++part) {
    const ShardReader& shard = shards[part->shard];
    const ShardGroup& group = shard.groups()[std::size_t(part->group)];
    // The last document of this part that begins at or before `at`.
    std::int64_t document = 0, high = group.examples;
    while (high - document > 1) {
      const std::int64_t middle = std::midpoint(document, high);
      const bool before = part->stream_first + shard.group_stream_first(part->group, middle) <= at;
      (before ? document : high) = middle;
    }
    for (; at < end && document < group.examples; ++document) {
      const std::int64_t example = shard.group_example(part->group, document);
      const std::int64_t length = shard.input_length(example);
      const std::int64_t skip = at - part->stream_first - shard.group_stream_first(part->group, document);
      if (skip < 0 || skip > length) {
        fail("shard {}: table 'index' disagrees with table 'examples' at example {}", shard.path(), example);
      }
      const std::int64_t take = std::min(length - skip, end - at);
      tokens.resize(tokens.size() + std::size_t(take));
      shard.read_tokens(shard.token_offset(example) + skip, std::span(tokens).last(std::size_t(take)));
      at += take;
      if (at < end) {
        tokens.push_back(shard.tokenizer().eos);
        ++at;
      }
    }
  }
  return tokens;
}

TextObjective::TextObjective(const Deck& deck, const TokenizerIdentity& tokenizer)
    : spans_(deck.data.objective == "span_corruption"),
      causal_(deck.data.objective == "causal_lm"),
      density_(deck.data.noise_density),
      mean_span_(deck.data.mean_span),
      seed_(std::uint64_t(deck.run.seed)),
      tokenizer_(tokenizer) {
  const std::int64_t inputs = deck.batch.input_length, targets = deck.batch.target_length;
  if (!spans_ && !causal_ && deck.data.objective != "prefix_lm") {
    usage_fail("data.objective: expected span_corruption, prefix_lm or causal_lm, found '{}'", deck.data.objective);
  }
  if (spans_) {
    piece_length_ = longest_piece(inputs, targets, density_, mean_span_);
  } else if (causal_) {
    piece_length_ = inputs + targets;
  } else {  // a decoder-only model has both sides in one row, with an EOS each
    piece_length_ = deck.model.decoder_only() ? inputs + targets - 2 : std::min(inputs, targets);
  }
  if (piece_length_ < 2) {
    usage_fail("batch.input_length {} and batch.target_length {} are too short for objective {}", inputs, targets,
               deck.data.objective);
  }
  if (!spans_) return;
  const std::int64_t sentinels = span_lengths(piece_length_, density_, mean_span_).spans;
  if (sentinels > tokenizer.sentinels) {
    usage_fail(
        "batch.input_length {} and batch.target_length {} with data.noise_density {} and data.mean_span {}: a piece of "
        "{} tokens needs {} sentinels, the tokenizer has {}",
        inputs, targets, density_, mean_span_, piece_length_, sentinels, tokenizer.sentinels);
  }
}

/// prefix_lm: where a piece is cut.
std::int64_t TextObjective::cut(std::int64_t tokens, std::uint32_t step, std::uint64_t draw) const {
  return tokens < 2 ? 0 : 1 + std::int64_t(key(step).below(std::uint64_t(tokens - 1), draw, 0));
}

SideLengths TextObjective::lengths(std::int64_t tokens, std::uint32_t step, std::uint64_t draw) const {
  if (spans_) {
    const SpanLengths lengths = span_lengths(tokens, density_, mean_span_);
    return {lengths.inputs, lengths.targets};
  }
  if (causal_) return {0, tokens};
  const std::int64_t at = cut(tokens, step, draw);
  return {at + 1, tokens - at + 1};
}

void TextObjective::apply(const TokenIds& piece, std::uint32_t step, std::uint64_t draw, TokenIds& inputs,
                          TokenIds& targets) const {
  const auto tokens = std::int64_t(piece.size());
  if (spans_) {
    const std::vector<bool> mask = noise_mask(tokens, density_, mean_span_, key(step), draw);
    const std::int32_t first_sentinel = tokenizer_.vocabulary - 1;
    replace_runs(piece, mask, true, first_sentinel, tokenizer_.eos, inputs);
    replace_runs(piece, mask, false, first_sentinel, tokenizer_.eos, targets);
    return;
  }
  if (causal_) {
    targets.insert(targets.end(), piece.begin(), piece.end());
    return;
  }
  const auto at = piece.begin() + cut(tokens, step, draw);
  inputs.insert(inputs.end(), piece.begin(), at);
  inputs.push_back(tokenizer_.eos);
  targets.insert(targets.end(), at, piece.end());
  targets.push_back(tokenizer_.eos);
}

}  // namespace flanmoe
