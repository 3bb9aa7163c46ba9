#include "model/side.hpp"

#include <algorithm>

namespace flanmoe {

void Side::reserve(std::int64_t most_tokens, std::int64_t rows, std::int64_t leaves) {
  const auto count = std::size_t(most_tokens);
  row_T.reserve(count);
  for (auto* v : {&position_T, &shared_T, &place_T, &key_begin_S, &key_count_S}) v->reserve(count);
  groups.first_token.reserve(std::size_t(rows) + 1);
  for (auto* v : {&leaf_token, &leaf_segment}) v->reserve(std::size_t(leaves) + 1);
}

void Side::bind(const RaggedSide& batch, std::int64_t first_row, std::int64_t group_rows, std::int64_t step_rows,
                std::int64_t step_tokens, std::int64_t leaves) {
  tokens = batch.tokens();
  self = {batch.segment_begin_S, batch.segment_count_S, batch.segment_begin_S, batch.segment_count_S};
  const std::int64_t rows = std::int64_t(batch.row_first.size()) - 1;
  row_T.clear();
  position_T.clear();
  groups.first_token.assign(1, 0);
  for (std::int64_t r = 0; r < rows; ++r) {
    const std::int64_t count = batch.row_first[std::size_t(r) + 1] - batch.row_first[std::size_t(r)];
    row_T.insert(row_T.end(), std::size_t(count), first_row + r);
    for (std::int64_t i = 0; i < count; ++i) position_T.push_back(std::int32_t(i));
    if ((r + 1) % group_rows == 0 || r + 1 == rows) groups.first_token.push_back(batch.row_first[std::size_t(r) + 1]);
  }
  bind_leaves(leaf_token, batch.row_first, leaves);
  groups.leaf_token = leaf_token;
  leaf_segment.clear();
  const auto& begin_S = batch.segment_begin_S;
  for (const std::int64_t token : leaf_token) {
    leaf_segment.push_back(std::lower_bound(begin_S.begin(), begin_S.end(), token) - begin_S.begin());
  }
  leaf_segment.back() = std::int64_t(begin_S.size());
  shared_T.assign(std::size_t(tokens), 0);
  groups.row_T = row_T;
  groups.position_T = position_T;
  place_T.assign(std::size_t(tokens), 0);
  for (std::size_t s = 0; s < batch.segment_begin_S.size(); ++s) {
    for (std::int32_t i = 0; i < batch.segment_count_S[s]; ++i) {
      place_T[std::size_t(batch.segment_begin_S[s] + i)] = i;
    }
  }
  groups.step_groups = std::max<std::int64_t>(1, (step_rows + group_rows - 1) / group_rows);
  groups.step_tokens = std::max<std::int64_t>(1, step_tokens);
}

void Side::place(KernelContext& context, const TransferKernels& transfer, const SideRoom& room,
                 const RaggedSide& batch) {
  ids_T = list_on_device(context, transfer, room.ids_T, batch.token_T);
  segment_place_T = list_on_device(context, transfer, room.place_T, place_T);
}

void SideRoom::lay(Arena& arena, const TransferKernels& transfer, std::int64_t tokens) {
  for (Tensor* t : {&ids_T, &place_T}) *t = list_room(transfer, arena, tokens);
}

void bind_leaves(std::vector<std::int64_t>& leaf_token, const std::vector<std::int64_t>& row_first,
                 std::int64_t leaves) {
  const std::int64_t rows = std::int64_t(row_first.size()) - 1;
  FLANMOE_EXPECT(rows % leaves == 0, "{} rows in {} leaves", rows, leaves);
  leaf_token.clear();
  for (std::int64_t leaf = 0; leaf <= leaves; ++leaf) {
    leaf_token.push_back(row_first[std::size_t(leaf * (rows / leaves))]);
  }
}

void Side::bind_cross(const RaggedSide& decoder, const RaggedSide& encoder,
                      const std::vector<std::int32_t>& encoder_of_S) {
  const std::size_t segments = decoder.segment_begin_S.size();
  key_begin_S.resize(segments);
  key_count_S.resize(segments);
  for (std::size_t s = 0; s < segments; ++s) {
    const std::size_t e = encoder_of_S.empty() ? s : std::size_t(encoder_of_S[s]);
    FLANMOE_EXPECT(e < encoder.segment_begin_S.size(), "decoder segment {} looks at encoder segment {} of {}", s, e,
                   encoder.segment_begin_S.size());
    key_begin_S[s] = encoder.segment_begin_S[e];
    key_count_S[s] = encoder.segment_count_S[e];
  }
  cross = {decoder.segment_begin_S, decoder.segment_count_S, key_begin_S, key_count_S};
}

DropoutMask feature_mask(const LayerContext& c, const Side& side, std::uint32_t site, bool shared) {
  return c.mask(c.deck.model.dropout, site, side.row_T, shared ? side.shared_T : side.position_T);
}

DropoutMask feature_mask(const LayerContext& c, const Side& side, std::uint32_t site) {
  return feature_mask(c, side, site, c.deck.model.dropout_shared_over_length);
}

}  // namespace flanmoe
