// How much arithmetic a training step is, counted from what it worked on rather than from padded shapes.
#pragma once

#include <array>

#include "data/batch.hpp"
#include "deck/deck.hpp"

namespace flanmoe {

/// What was worked on; additive over microbatches and ranks. A pair is a (query, key) that attention scores. In a
/// decoder-only model inputs and targets are decoder tokens.
struct WorkCounts {
  double encoder_tokens = 0, decoder_tokens = 0;
  double target_tokens = 0;  // whose logits were computed
  double encoder_pairs = 0;  // sum over segments of n*n
  double decoder_pairs = 0;  // causal: sum of n*(n+1)/2; a prefix of p tokens adds p*(p-1)/2
  double cross_pairs = 0;    // sum of n_decoder*n_encoder
  double routed_copies = 0;  // token copies that experts computed, summed over the sparse layers

  WorkCounts& operator+=(const WorkCounts& other);
  static constexpr std::size_t kNumbers = 7;
  std::array<double, kNumbers> pack() const;
  static WorkCounts unpack(const double* numbers);
};

/// Counts of one batch, without routed_copies (the routers know those).
WorkCounts count_work(const ModelDeck& model, const PackedBatch& batch);
/// Counts of one row filled by one segment, with nothing dropped: the most a row can be. Raw text under causal_lm is
/// all target.
WorkCounts full_row(const Deck& deck);

/// Floating-point operations of a training step by part; one multiply-add counts two.
struct TrainingFlops {
  double encoder = 0;    // projections, dense feed-forwards (extra ones too) and routers of the encoder
  double decoder = 0;    // the same of the decoder, with the key and value projections of the encoder's output
  double experts = 0;    // feed-forwards of the sparse layers, with shared experts
  double attention = 0;  // scores and weighted sums
  double logits = 0;
  double total() const { return encoder + decoder + experts + attention + logits; }
};

/// Forward and backward. Every product of the forward has two of the same size in the backward (gradient of its input
/// and of its weight; for attention four for two), so a step is three forwards: the known 6 per active weight and
/// token. Frozen weights count as if they were trained. Recomputation, normalisation, softmax, optimizer and embedding
/// look-ups are not counted.
TrainingFlops training_flops(const ModelDeck& model, const MoeDeck& moe, const WorkCounts& work);

/// Feed-forwards that are sparse among `layers`: layer l is iff l % moe.every == moe.every-1.
std::int64_t sparse_layers(const MoeDeck& moe, bool enabled, std::int64_t layers);

}  // namespace flanmoe
