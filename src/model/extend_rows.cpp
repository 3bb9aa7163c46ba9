// Decoding with a decoder-only model: new tokens of some rows, first the whole input, then one token at a time.
#include "base/timer.hpp"
#include "model/model_state.hpp"

namespace flanmoe {
namespace {

/// The new tokens as a side, with the rows of the cache that they fill and attend to.
struct NewRows {
  RaggedSide batch;
  Side side;
  std::vector<std::int32_t> key_begin_S, key_count_S, prefix_S;
  std::vector<std::int32_t> slot_T;  // cache row of each new token
  std::vector<std::int32_t> last_B;  // the last new token of each row
};

void bind(NewRows& rows, const std::vector<NewTokens>& news, std::int64_t longest, bool with_prefix) {
  rows.batch.row_first.assign(1, 0);
  for (const NewTokens& n : news) {
    const auto count = std::int32_t(n.tokens.size());
    append_row(rows.batch, n.tokens);
    rows.key_begin_S.push_back(std::int32_t(n.slot * longest));
    rows.key_count_S.push_back(n.place + count);
    // The prefix is what comes first; whatever comes later sees all that stands before it anyway.
    rows.prefix_S.push_back(with_prefix && n.place == 0 ? count : 0);
    for (std::int32_t i = 0; i < count; ++i) rows.slot_T.push_back(rows.key_begin_S.back() + n.place + i);
    rows.last_B.push_back(std::int32_t(rows.batch.tokens()) - 1);
  }
  rows.side.bind(rows.batch, 0, 1, 1, 1);  // places follow
  for (std::size_t s = 0; s < news.size(); ++s) {
    for (std::size_t i = 0; i < news[s].tokens.size(); ++i) {
      rows.side.place_T[std::size_t(rows.batch.segment_begin_S[s]) + i] = news[s].place + std::int32_t(i);
    }
  }
}

}  // namespace

void extend_rows(const LayerContext& c, Model::State& s, const std::vector<NewTokens>& news,
                 StepStatistics& statistics) {
  NewRows rows;
  bind(rows, news, s.cache.longest, s.deck.model.attention == "prefix");
  s.check_fits({}, rows.batch);
  rows.side.place(c.context, c.k.transfer, s.decoder_room, rows.batch);
  CachedKeys cached;
  for (const DecodingCache::Layer& layer : s.cache.layers) {
    cached.k_CQ.push_back(layer.self_k_CQ);
    cached.v_CQ.push_back(layer.self_v_CQ);
  }
  cached.slot_T = s.list(c.context, s.cache.slot_T, rows.slot_T);
  cached.segments = {rows.side.self.query_begin, rows.side.self.query_count, rows.key_begin_S, rows.key_count_S,
                     rows.prefix_S};
  const Tensor out_TD = s.decoder->forward(c, s.work, rows.side, nullptr, nullptr, statistics, &cached);
  const PartScope part(Part::logits);
  const auto count = std::int64_t(news.size());
  const Tensor last_BD = first_rows(s.work.sublayer.part_TD, count);
  c.k.permute.gather(c.context, last_BD, out_TD, s.list(c.context, s.cache.last_B, rows.last_B));
  const Transpose tied = s.deck.model.tied_logits ? Transpose::yes : Transpose::no;
  c.k.matmul.product(c.context, first_rows(s.cache.logits_BV, count), last_BD, Transpose::no, c.weight(s.logits()),
                     tied, 0.0F);
}

}  // namespace flanmoe
