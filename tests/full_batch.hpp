// Batches whose rows have all their tokens.
#pragma once

#include <random>

#include "data/batch.hpp"
#include "deck/deck.hpp"

namespace flanmoe::testing {

/// `rows` rows from `first_row` of a step, one full segment each.
inline PackedBatch full_batch(const Deck& deck, std::int64_t first_row, std::int64_t rows) {
  std::mt19937 random(unsigned(first_row + 1));
  PackedBatch batch;
  batch.first_row = first_row;
  batch.rows = rows;
  batch.step_rows = deck.batch.rows;
  const auto fill = [&](RaggedSide& side, std::int64_t length) {
    side.row_first.assign(1, 0);
    for (std::int64_t r = 0; r < rows; ++r) {
      side.segment_begin_S.push_back(std::int32_t(r * length));
      side.segment_count_S.push_back(std::int32_t(length));
      for (std::int64_t i = 0; i < length; ++i) {
        side.token_T.push_back(std::int32_t(3 + random() % std::uint64_t(deck.model.vocabulary - 3)));
      }
      side.row_first.push_back(side.tokens());
    }
  };
  fill(batch.encoder, deck.batch.input_length);
  fill(batch.decoder, deck.batch.target_length);
  batch.target_T = batch.decoder.token_T;
  batch.segment_row_S.resize(std::size_t(rows));
  for (std::int64_t r = 0; r < rows; ++r) batch.segment_row_S[std::size_t(r)] = std::int32_t(r);
  batch.segment_task_S.assign(std::size_t(rows), 0);
  batch.step_segments = deck.batch.rows;
  batch.step_encoder_tokens = deck.batch.rows * deck.batch.input_length;
  batch.step_target_tokens = deck.batch.rows * deck.batch.target_length;
  return batch;
}

}  // namespace flanmoe::testing
