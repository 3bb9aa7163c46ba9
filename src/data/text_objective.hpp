// Text as training examples: pieces of a task's token stream, and the objective that makes inputs and targets of them.
#pragma once

#include <cstdint>
#include <vector>

#include "data/mixture.hpp"
#include "data/shard.hpp"
#include "data/span_corruption.hpp"
#include "deck/deck.hpp"

namespace flanmoe {

/// Piece `piece` of a text task. Documents stand in shard order, each followed by EOS.
TokenIds read_piece(const std::vector<ShardReader>& shards, const MixtureTask& task, std::int64_t piece,
                    std::int64_t piece_length);
/// Its length: piece_length, or less for the last piece.
std::int64_t length_of_piece(const MixtureTask& task, std::int64_t piece, std::int64_t piece_length);

/// Tokens of both sides of an example, EOS included.
struct SideLengths {
  std::int64_t inputs = 0, targets = 0;
};

/// span_corruption: the longest pieces whose two sides fit a row. prefix_lm: a piece is cut at a place uniform
/// over [1, length); what comes before are inputs, the rest targets, and a piece is as long as lets every cut fit.
/// causal_lm (decoder-only models): a piece fills the row and is all target, without an EOS of its own.
class TextObjective {
 public:
  /// Throws UsageError when no piece fits the row, or a piece needs more sentinels than the tokenizer has.
  TextObjective(const Deck& deck, const TokenizerIdentity& tokenizer);
  std::int64_t piece_length() const { return piece_length_; }
  /// Lengths of a piece of `tokens` tokens, used as draw `draw` of `step`; needs no token.
  SideLengths lengths(std::int64_t tokens, std::uint32_t step, std::uint64_t draw) const;
  /// Appends inputs and targets, EOS included.
  void apply(const TokenIds& piece, std::uint32_t step, std::uint64_t draw, TokenIds& inputs, TokenIds& targets) const;

 private:
  RandomKey key(std::uint32_t step) const { return {seed_, RandomPurpose::data_corruption, step, 0}; }
  std::int64_t cut(std::int64_t tokens, std::uint32_t step, std::uint64_t draw) const;

  bool spans_, causal_;
  double density_, mean_span_;
  std::uint64_t seed_;
  TokenizerIdentity tokenizer_;
  std::int64_t piece_length_ = 0;
};

}  // namespace flanmoe
