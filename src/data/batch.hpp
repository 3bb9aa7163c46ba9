// The batch of a step: a function of (deck, seed, step) only.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "deck/deck.hpp"

namespace flanmoe {

/// Rows of one side (encoder or decoder), without padding. Tokens of all rows stand one after another; a segment is one
/// packed example; every segment exists on both sides, in the same order.
struct RaggedSide {
  std::vector<std::int32_t> token_T;
  std::vector<std::int64_t> row_first;        // rows+1 offsets into token_T
  std::vector<std::int32_t> segment_begin_S;  // first token
  std::vector<std::int32_t> segment_count_S;
  std::int64_t tokens() const { return std::int64_t(token_T.size()); }
};

/// Part of a step's batch: `rows` consecutive rows starting at global row `first_row`.
/// Decoder inputs are the targets of a segment shifted right, with pad (0) first. Every target token, EOS included, has
/// loss weight 1.
struct PackedBatch {
  std::int64_t step = 0, first_row = 0, rows = 0;
  RaggedSide encoder, decoder;               // decoder.token_T: decoder inputs
  std::vector<std::int32_t> target_T;        // like decoder.token_T
  std::vector<std::int32_t> segment_row_S;   // row (from 0, local) of each segment
  std::vector<std::int32_t> segment_task_S;  // index into task_names of the mixture
  // Of the whole step, the same on every rank, known before any token is read:
  std::int64_t step_rows = 0, step_encoder_tokens = 0, step_target_tokens = 0, step_segments = 0;
};

/// One task of the mixture, for reports.
struct MixtureEntry {
  std::string task;
  std::int64_t examples = 0;
  double rate = 0;    // probability of a draw
  bool text = false;  // pieces of raw documents; otherwise pairs
};

/// Opens the shards of deck.data, builds the mixture, and makes batches. Throws UsageError when no example matches, a
/// pattern matches nothing, or shards disagree on the tokenizer; Error when a shard is damaged.
/// Text shards: documents are concatenated in shard order with EOS between and cut into pieces whose length fills the
/// row exactly (paper facts 4.9); piece order is a keyed permutation per epoch.
/// Pairs: a draw picks a task by rate (4.11), then the next example of that task's keyed permutation; rows of a step
/// are packed next-fit (4.10) from the draws of that step; inputs and targets are trimmed to the row lengths and EOS is
/// appended.
class BatchSource {
 public:
  BatchSource(const Deck& deck, std::int64_t vocabulary);
  ~BatchSource();
  /// Rows [first_row, first_row+rows) of the step. Thread safe against itself only when called from one thread.
  PackedBatch read(std::int64_t step, std::int64_t first_row, std::int64_t rows);
  const std::vector<MixtureEntry>& mixture() const;
  /// For the log: what the sub-mixtures of the deck hold and lack.
  const std::vector<std::string>& mixture_notes() const;
  const std::string& tokenizer_fingerprint() const;

 private:
  struct State;
  std::unique_ptr<State> state_;
};

/// Reads batches ahead on one thread: next() gives the microbatches of step first_step, first_step+1, ..., last_step-1
/// of the rows [first_row, first_row+rows), cut into pieces of microbatch_rows; at most `depth` steps wait. An error in
/// the thread is thrown by next(). While a Prefetcher lives nobody else uses its source; the thread takes hdf5_mutex()
/// around its HDF5 calls.
class Prefetcher {
 public:
  Prefetcher(std::shared_ptr<BatchSource> source, std::int64_t first_step, std::int64_t last_step,
             std::int64_t first_row, std::int64_t rows, std::int64_t microbatch_rows, std::int64_t depth);
  ~Prefetcher();
  std::vector<PackedBatch> next();
  /// How often next() found its step not read yet, and had to wait.
  std::int64_t waits() const;
  /// Steps that are read and not yet taken.
  std::int64_t ready() const;

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace flanmoe
