// A batch as a decoder-only model reads it: input and target of a segment as one sequence.
#pragma once

#include <cstdint>
#include <vector>

#include "data/batch.hpp"
#include "model/model.hpp"

namespace flanmoe {

/// With an input i_0 .. i_n-1 (EOS last) and a target t_0 .. t_m-1, a segment is
///
///   tokens   pad i_0 ... i_n-1 t_0 ... t_m-2
///   place n + j predicts t_j; the first n + 1 places are the prefix.
///
/// That is the target of length n + m shifted right, with a loss on t only; the prefix holds the whole input (seqio's
/// decoder-only converter; paper facts 4.9). Without an input every place predicts: a causal language model.
struct JoinedBatch {
  RaggedSide side;
  std::vector<std::int32_t> prefix_S;  // places that are seen in both directions; empty: all attention is causal
  std::vector<std::int32_t> place_T;   // of each target token: the token of `side` at which it is predicted

  /// `encoder_of_S[s]`: the encoder segment in front of decoder segment s (empty: the same index). Vectors keep their
  /// memory from call to call.
  void build(const PackedBatch& batch, const std::vector<std::int32_t>& encoder_of_S, bool with_prefix);
  void reserve(const BatchLimits& joined);
};

/// Limits of the joined sequences of microbatches within `limits`: all is on the decoder side.
BatchLimits joined_limits(const BatchLimits& limits);

}  // namespace flanmoe
