// Arithmetic of a step against numbers worked out by hand.
#include "train/flops.hpp"

#include <gtest/gtest.h>

namespace flanmoe {
namespace {

Deck small_deck() {
  Deck deck;
  deck.model.width = 10;
  deck.model.hidden = 7;
  deck.model.heads = 2;
  deck.model.head_width = 3;  // Q = 6
  deck.model.vocabulary = 50;
  deck.model.encoder_layers = 2;
  deck.model.decoder_layers = 3;
  deck.model.activation = "relu";
  deck.batch.input_length = 5;
  deck.batch.target_length = 4;
  return deck;
}

TEST(Flops, DenseModelEqualsHandCount) {
  const Deck deck = small_deck();
  WorkCounts work;
  work.encoder_tokens = 11;
  work.decoder_tokens = work.target_tokens = 9;
  work.encoder_pairs = 61;
  work.decoder_pairs = 25;
  work.cross_pairs = 50;

  const TrainingFlops flops = training_flops(deck.model, deck.moe, work);

  // One self-attention 4*10*6 = 240 multiply-adds a token, one cross-attention 120 a target and 120 an input, one
  // feed-forward 2*10*7 = 140; six operations for each.
  EXPECT_EQ(flops.encoder, 6.0 * 11 * (2 * 240 + 2 * 140));
  EXPECT_EQ(flops.decoder, 6.0 * (9 * 3 * (240 + 120 + 140) + 11 * 3 * 120));
  EXPECT_EQ(flops.attention, 6.0 * 2 * 6 * (2 * 61 + 3 * (25 + 50)));
  EXPECT_EQ(flops.logits, 6.0 * 9 * 10 * 50);
  EXPECT_EQ(flops.experts, 0.0);
  EXPECT_EQ(flops.total(), 50160.0 + 104760.0 + 24984.0 + 27000.0);
}

TEST(Flops, SparseLayersCountKeptCopiesAndTheRouter) {
  Deck deck = small_deck();
  deck.moe.router = "top_k";
  deck.moe.experts = 4;
  deck.moe.top_k = 2;
  deck.moe.every = 2;
  deck.model.activation = "gated_gelu";
  WorkCounts work;
  work.encoder_tokens = 3;
  work.routed_copies = 5;

  const TrainingFlops flops = training_flops(deck.model, deck.moe, work);

  // Layer 1 of the encoder is sparse: one dense feed-forward of 3*10*7 = 210 and one router of 40 a token.
  EXPECT_EQ(flops.encoder, 6.0 * 3 * (2 * 240 + 210 + 40));
  EXPECT_EQ(flops.experts, 6.0 * 5 * 210);
}

TEST(Flops, SharedExpertsAndExtraFeedForwardsCountForEveryToken) {
  Deck deck = small_deck();
  deck.moe.router = "top_k";
  deck.moe.experts = 4;
  deck.moe.shared_experts = 3;
  deck.moe.extra_feed_forward = true;
  WorkCounts work;
  work.encoder_tokens = 3;
  work.routed_copies = 5;

  const TrainingFlops flops = training_flops(deck.model, deck.moe, work);

  // ReLU feed-forwards of 2*10*7 = 140: one dense layer, one behind the sparse layer; 5 copies and 3 shared ones a
  // token.
  EXPECT_EQ(flops.encoder, 6.0 * 3 * (2 * 240 + 140 + 140 + 40));
  EXPECT_EQ(flops.experts, 6.0 * (5 + 3 * 3) * 140);
}

TEST(Flops, ExpertsThatChooseTakeTheirSlots) {
  Deck deck = small_deck();
  deck.moe.router = "expert_choice";
  deck.moe.experts = 2;
  deck.moe.top_k = 2;
  deck.moe.every = 1;
  deck.moe.capacity_factor = 1.0;
  deck.moe.min_capacity = 1;
  deck.moe.group_rows = 2;

  // Encoder: groups of 2 rows of 5 tokens, 2 experts of 5 slots: 5 copies a row in 2 layers. Decoder: 2 choices of 4
  // tokens in 3 layers.
  EXPECT_EQ(full_row(deck).routed_copies, 2 * 5 + 3 * 2 * 4);
}

TEST(Flops, DecoderOnlyModelEqualsHandCount) {
  Deck deck = small_deck();
  deck.model.family = "palm";
  deck.model.encoder_layers = 0;
  deck.model.kv_heads = 1;
  deck.model.activation = "gated_swish";
  PackedBatch batch;
  batch.encoder.segment_count_S = {3, 0};
  batch.decoder.segment_count_S = {2, 4};

  for (const bool prefix : {false, true}) {
    deck.model.attention = prefix ? "prefix" : "causal";
    const WorkCounts work = count_work(deck.model, batch);
    // Sequences of 5 and 4 tokens, 2 + 4 of them predicted; prefixes of 4 and 1 tokens add 3+2+1 pairs and none.
    EXPECT_EQ(work.encoder_tokens, 0);
    EXPECT_EQ(work.decoder_tokens, 9);
    EXPECT_EQ(work.target_tokens, 6);
    EXPECT_EQ(work.decoder_pairs, 15 + 10 + (prefix ? 6 : 0));
    EXPECT_EQ(work.cross_pairs, 0);

    const TrainingFlops flops = training_flops(deck.model, deck.moe, work);
    // Query and output 2*10*6, key and value 2*10*3 (one head), three matrices of 10*7 in each of three layers.
    EXPECT_EQ(flops.encoder, 0);
    EXPECT_EQ(flops.decoder, 6.0 * 9 * 3 * (120 + 60 + 210));
    EXPECT_EQ(flops.attention, 6.0 * 2 * 6 * 3 * work.decoder_pairs);
    EXPECT_EQ(flops.logits, 6.0 * 6 * 10 * 50);
  }
}

TEST(Flops, SixPerParameterAndTokenInPalm) {
  // The known rule: without scores and with every token predicted, a step is 6 operations per parameter (the embedding
  // counted once, as logits) and token.
  Deck deck;
  deck.model.family = "palm";
  deck.model.vocabulary = 256000;
  deck.model.width = 4096;
  deck.model.hidden = 16384;
  deck.model.heads = 16;
  deck.model.kv_heads = 1;
  deck.model.head_width = 256;
  deck.model.encoder_layers = 0;
  deck.model.decoder_layers = 32;
  deck.model.activation = "gated_swish";
  WorkCounts work;
  work.decoder_tokens = work.target_tokens = 1;
  EXPECT_NEAR(training_flops(deck.model, deck.moe, work).total() / 6, 8.63e9, 0.005e9);
}

TEST(Flops, FullRowIsOneSegmentOfEachLength) {
  Deck deck = small_deck();
  deck.moe.router = "top_k";
  deck.moe.top_k = 2;
  deck.moe.every = 1;
  deck.moe.decoder = false;

  const WorkCounts work = full_row(deck);

  EXPECT_EQ(work.encoder_pairs, 25);
  EXPECT_EQ(work.decoder_pairs, 10);
  EXPECT_EQ(work.cross_pairs, 20);
  EXPECT_EQ(work.routed_copies, 2 * 5 * 2);
}

TEST(Flops, FullRowOfACausalModelIsAllTarget) {
  Deck deck = small_deck();
  deck.model.family = "palm";
  deck.data.objective = "causal_lm";

  const WorkCounts work = full_row(deck);

  EXPECT_EQ(work.decoder_tokens, 9);
  EXPECT_EQ(work.target_tokens, 9);
  EXPECT_EQ(work.decoder_pairs, 45);
}

TEST(Flops, CountsOfABatchAreThoseOfItsSegments) {
  PackedBatch batch;
  batch.encoder.token_T.resize(7);
  batch.encoder.segment_count_S = {3, 4};
  batch.decoder.token_T.resize(3);
  batch.decoder.segment_count_S = {2, 1};

  const WorkCounts work = count_work(small_deck().model, batch);

  EXPECT_EQ(work.encoder_tokens, 7);
  EXPECT_EQ(work.decoder_tokens, 3);
  EXPECT_EQ(work.target_tokens, 3);
  EXPECT_EQ(work.encoder_pairs, 9 + 16);
  EXPECT_EQ(work.decoder_pairs, 3 + 1);
  EXPECT_EQ(work.cross_pairs, 6 + 4);
  EXPECT_EQ(WorkCounts::unpack(work.pack().data()).cross_pairs, 10);
}

}  // namespace
}  // namespace flanmoe
