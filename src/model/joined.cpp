#include "model/joined.hpp"

namespace flanmoe {

void JoinedBatch::build(const PackedBatch& batch, const std::vector<std::int32_t>& encoder_of_S, bool with_prefix) {
  const RaggedSide& inputs = batch.encoder;
  const RaggedSide& targets = batch.decoder;
  side.token_T.clear();
  side.row_first.assign(1, 0);
  side.segment_begin_S.clear();
  side.segment_count_S.clear();
  prefix_S.clear();
  place_T.resize(std::size_t(targets.tokens()));
  std::size_t s = 0;
  const std::size_t segments = targets.segment_begin_S.size();
  for (std::size_t row = 1; row < targets.row_first.size(); ++row) {
    for (; s < segments && targets.segment_begin_S[s] < targets.row_first[row]; ++s) {
      const std::size_t e = encoder_of_S.empty() ? s : std::size_t(encoder_of_S[s]);
      FLANMOE_EXPECT(e < inputs.segment_begin_S.size(), "target segment {} continues input segment {} of {}", s, e,
                     inputs.segment_begin_S.size());
      const auto input = inputs.token_T.begin() + inputs.segment_begin_S[e];
      const std::int32_t input_count = inputs.segment_count_S[e];
      const auto target = targets.token_T.begin() + targets.segment_begin_S[s];  // shifted right: pad first
      const std::int32_t target_count = targets.segment_count_S[s];
      FLANMOE_EXPECT(target_count > 0, "target segment {} is empty", s);
      const auto begin = std::int32_t(side.tokens());
      side.segment_begin_S.push_back(begin);
      side.segment_count_S.push_back(input_count + target_count);
      if (with_prefix) prefix_S.push_back(input_count + 1);
      side.token_T.push_back(*target);
      side.token_T.insert(side.token_T.end(), input, input + input_count);
      side.token_T.insert(side.token_T.end(), target + 1, target + target_count);
      for (std::int32_t j = 0; j < target_count; ++j) {
        place_T[std::size_t(targets.segment_begin_S[s] + j)] = begin + input_count + j;
      }
    }
    side.row_first.push_back(side.tokens());
  }
  FLANMOE_EXPECT(s == segments, "{} of {} target segments belong to a row", s, segments);
}

void JoinedBatch::reserve(const BatchLimits& joined) {
  const auto tokens = std::size_t(joined.decoder_tokens);
  for (auto* v : {&side.token_T, &side.segment_begin_S, &side.segment_count_S, &prefix_S, &place_T}) v->reserve(tokens);
  side.row_first.reserve(std::size_t(joined.rows) + 1);
}

BatchLimits joined_limits(const BatchLimits& limits) {
  return {.rows = limits.rows,
          .encoder_tokens = 0,
          .decoder_tokens = limits.encoder_tokens + limits.decoder_tokens,
          .longest_input = 0,
          .longest_target = limits.longest_input + limits.longest_target,
          .leaves = limits.leaves};
}

}  // namespace flanmoe
