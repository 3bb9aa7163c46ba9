// Greedy decoding with a KV cache.
#include <algorithm>
#include <numeric>

#include "base/timer.hpp"
#include "model/model_state.hpp"

namespace flanmoe {
namespace {

/// The newest token of every row that is still being decoded, as a Side of one-token rows.
struct DecodingStep {
  RaggedSide batch;
  Side side;
  std::vector<std::int32_t> key_begin_S, key_count_S;          // of the self cache
  std::vector<std::int32_t> encoder_begin_S, encoder_count_S;  // of the input
};

/// Points the step at the rows in `active` (indices into the batch), whose newest tokens are `newest`.
void bind_step(DecodingStep& step, const std::vector<std::int32_t>& active, const TokenIds& newest,
               const RaggedSide& encoder, std::int64_t position, std::int64_t longest) {
  step.batch = {};
  step.batch.row_first.assign(1, 0);
  step.key_begin_S.clear();
  step.key_count_S.assign(active.size(), std::int32_t(position + 1));
  step.encoder_begin_S.clear();
  step.encoder_count_S.clear();
  for (const std::int32_t row : active) {
    append_row(step.batch, {newest[std::size_t(row)]});
    step.key_begin_S.push_back(std::int32_t(row * longest));
    step.encoder_begin_S.push_back(encoder.segment_begin_S[std::size_t(row)]);
    step.encoder_count_S.push_back(encoder.segment_count_S[std::size_t(row)]);
  }
  step.side.bind(step.batch, 0, 1, 1, 1);
}

/// One decoder layer's attention over a cache: x_out = x + output(attention(query(norm(x)), keys, values)).
void cached_attention(const LayerContext& c, Model::State& s, const Tensor& x_out_TD, const Tensor& x_TD,
                      AttentionActivations& saved, const AttentionTensors<int>& w, const Tensor& k_TQ,
                      const Tensor& v_TQ, const Tensor& bias_HP, const AttentionSegments& segments,
                      const AttentionShape& shape, const Side& side) {
  const PartScope part(Part::attention);
  const auto rows = [&](const Tensor& t) { return first_rows(t, side.tokens); };
  c.k.matmul.product(c.context, rows(saved.q_TQ), rows(saved.y_TD), Transpose::no, c.weight(w.query_DQ), Transpose::no,
                     0.0F);
  c.k.attention.forward(c.context, rows(saved.out_TQ), {}, rows(saved.q_TQ), k_TQ, v_TQ, bias_HP, segments, shape);
  const Tensor part_TD = rows(s.work.sublayer.part_TD);
  c.k.matmul.product(c.context, part_TD, rows(saved.out_TQ), Transpose::no, c.weight(w.output_QD), Transpose::no, 0.0F);
  add_to_residual(c, x_out_TD, x_TD, part_TD, side, 0);
}

/// Keys and values of the input, once per batch and layer.
void fill_cross_cache(const LayerContext& c, Model::State& s, const Tensor& encoded_TD) {
  for (std::size_t l = 0; l < s.cache.layers.size(); ++l) {
    const AttentionTensors<int>& w = s.tensors.decoder.layers[l].cross;
    const auto rows = [&](const Tensor& t) { return first_rows(t, encoded_TD.rows); };
    c.k.matmul.product(c.context, rows(s.cache.layers[l].cross_k_TQ), encoded_TD, Transpose::no, c.weight(w.key_DQ),
                       Transpose::no, 0.0F);
    c.k.matmul.product(c.context, rows(s.cache.layers[l].cross_v_TQ), encoded_TD, Transpose::no, c.weight(w.value_DQ),
                       Transpose::no, 0.0F);
  }
}

/// Runs the decoder on the newest tokens and leaves logits in the cache. Collective over the expert group.
void decode_position(const LayerContext& c, Model::State& s, const DecodingStep& step,
                     const std::vector<std::int32_t>& active, std::int64_t position, std::int64_t input_tokens,
                     StepStatistics& statistics) {
  StackActivations& a = s.decoder->activations();
  const Side& side = step.side;
  const auto rows = [&](const Tensor& t) { return first_rows(t, side.tokens); };
  const AttentionSegments self{side.self.query_begin, side.self.query_count, step.key_begin_S, step.key_count_S};
  const AttentionSegments cross{side.self.query_begin, side.self.query_count, step.encoder_begin_S,
                                step.encoder_count_S};
  const Tensor slot_B = rows(s.cache.slot_B);
  for (std::size_t i = 0; i < active.size(); ++i) {
    *slot_B.row<std::int32_t>(std::int64_t(i)) = std::int32_t(active[i] * s.cache.longest + position);
  }
  s.decoder->embed(c, side);
  for (std::size_t l = 0; l < s.cache.layers.size(); ++l) {
    LayerActivations& saved = a.layers[l];
    const LayerTensors<int>& w = s.tensors.decoder.layers[l];
    DecodingCache::Layer& cache = s.cache.layers[l];
    const auto normalize = [&](AttentionActivations& act, int scale, const Tensor& x_TD) {
      c.k.norm.forward(c.context, rows(act.y_TD), rows(act.rstd_T), x_TD, c.weight(scale),
                       float(s.deck.model.norm_epsilon));
    };
    normalize(saved.self, w.self.norm_D, rows(saved.x_self_TD));
    for (const bool key : {true, false}) {
      const Tensor fresh_TQ = rows(key ? saved.self.k_TQ : saved.self.v_TQ);
      c.k.matmul.product(c.context, fresh_TQ, rows(saved.self.y_TD), Transpose::no,
                         c.weight(key ? w.self.key_DQ : w.self.value_DQ), Transpose::no, 0.0F);
      c.k.permute.scatter(c.context, key ? cache.self_k_CQ : cache.self_v_CQ, fresh_TQ, slot_B);
    }
    cached_attention(c, s, rows(saved.x_cross_TD), rows(saved.x_self_TD), saved.self, w.self, cache.self_k_CQ,
                     cache.self_v_CQ, a.bias_HP, self, s.decoder->self_shape(), side);
    normalize(saved.cross, w.cross.norm_D, rows(saved.x_cross_TD));
    cached_attention(c, s, rows(saved.x_ffn_TD), rows(saved.x_cross_TD), saved.cross, w.cross,
                     first_rows(cache.cross_k_TQ, input_tokens), first_rows(cache.cross_v_TQ, input_tokens), {}, cross,
                     s.decoder->cross_shape(), side);
    const Tensor& next = l + 1 < s.cache.layers.size() ? a.layers[l + 1].x_self_TD : a.x_final_TD;
    s.decoder->feed_forward_sublayer(c, rows(next), s.work, side, l, statistics);
  }
  const Tensor decoded_TD = s.decoder->finish(c, side);
  const PartScope part(Part::logits);
  const Transpose tied = s.deck.model.tied_logits ? Transpose::yes : Transpose::no;
  c.k.matmul.product(c.context, rows(s.cache.logits_BV), decoded_TD, Transpose::no, c.weight(s.logits()), tied, 0.0F);
}

/// Index of the first largest logit.
template <class T>
std::int32_t argmax(const Tensor& logits_BV, std::int64_t row) {
  const T* logit = logits_BV.row<T>(row);
  return std::int32_t(std::max_element(logit, logit + logits_BV.cols) - logit);
}

/// Decodes inputs [first, last). Every rank of the expert group calls it the same number of times.
void decode_batch(Model::State& s, KernelContext& kernel, const std::vector<TokenIds>& inputs, std::size_t first,
                  std::size_t last, std::int64_t max_new_tokens, std::vector<TokenIds>& outputs) {
  const LayerContext c = s.context(kernel, false, 0);
  StepStatistics statistics;
  s.prepare(statistics);
  PackedBatch batch;
  batch.rows = std::int64_t(last - first);
  for (std::size_t i = first; i < last; ++i) append_row(batch.encoder, inputs[i]);
  if (batch.encoder.row_first.empty()) batch.encoder.row_first.assign(1, 0);
  batch.decoder.row_first.assign(1, 0);
  s.check_fits(batch);
  s.encoder_side.bind(batch.encoder, 0, 1, 1, 1);
  const Tensor encoded_TD = s.encoder->forward(c, s.work, s.encoder_side, nullptr, nullptr, statistics);
  fill_cross_cache(c, s, encoded_TD);
  s.decoder->expand_bias(c);

  TokenIds newest(last - first, kPad);
  std::vector<std::int32_t> active(last - first);
  std::iota(active.begin(), active.end(), 0);
  DecodingStep step;
  for (std::int64_t position = 0; position < max_new_tokens; ++position) {
    // Ranks whose rows have all ended still take part in the exchanges of the sparse layers.
    const auto left = s.communicators.expert.all_reduce(std::int64_t(active.size()), ReduceOp::max);
    if (left == 0) break;
    bind_step(step, active, newest, batch.encoder, position, s.cache.longest);
    decode_position(c, s, step, active, position, s.encoder_side.tokens, statistics);
    std::vector<std::int32_t> still_active;
    for (std::size_t i = 0; i < active.size(); ++i) {
      const Tensor& logits = s.cache.logits_BV;
      const std::int32_t id =
          logits.dtype == DType::f64 ? argmax<double>(logits, std::int64_t(i)) : argmax<float>(logits, std::int64_t(i));
      if (id == kEos) continue;
      newest[std::size_t(active[i])] = id;
      outputs[first + std::size_t(active[i])].push_back(id);
      still_active.push_back(active[i]);
    }
    active = std::move(still_active);
  }
}

}  // namespace

void append_row(RaggedSide& side, const TokenIds& tokens) {
  if (side.row_first.empty()) side.row_first.assign(1, 0);
  side.segment_begin_S.push_back(std::int32_t(side.tokens()));
  side.segment_count_S.push_back(std::int32_t(tokens.size()));
  side.token_T.insert(side.token_T.end(), tokens.begin(), tokens.end());
  side.row_first.push_back(side.tokens());
}

TokenIds with_eos(TokenIds ids, std::int64_t longest) {
  ids.resize(std::min(ids.size(), std::size_t(longest - 1)));
  ids.push_back(kEos);
  return ids;
}

std::vector<TokenIds> generate_greedy(Model& model, KernelContext& kernel, const std::vector<TokenIds>& inputs,
                                      std::int64_t max_new_tokens) {
  Model::State& s = model.state();
  FLANMOE_EXPECT(!s.training && max_new_tokens <= s.cache.longest,
                 "decoding {} tokens needs a model laid for evaluation with room for them ({})", max_new_tokens,
                 s.cache.longest);
  std::vector<TokenIds> trimmed = inputs;
  for (TokenIds& ids : trimmed) ids = with_eos(std::move(ids), s.limits.longest_input);
  std::vector<std::size_t> cuts{0};
  std::int64_t tokens = 0;
  for (std::size_t i = 0; i < trimmed.size(); ++i) {
    const auto count = std::int64_t(trimmed[i].size());
    const bool full = std::int64_t(i - cuts.back()) == s.limits.rows || tokens + count > s.limits.encoder_tokens;
    if (full) {
      cuts.push_back(i);
      tokens = 0;
    }
    tokens += count;
  }
  const auto mine = std::int64_t(trimmed.empty() ? 0 : cuts.size());
  const std::int64_t batches = s.communicators.expert.all_reduce(mine, ReduceOp::max);
  cuts.resize(std::size_t(batches) + 1, trimmed.size());  // ranks with fewer batches end with empty ones
  std::vector<TokenIds> outputs(trimmed.size());
  for (std::int64_t b = 0; b < batches; ++b) {
    decode_batch(s, kernel, trimmed, cuts[std::size_t(b)], cuts[std::size_t(b) + 1], max_new_tokens, outputs);
  }
  return outputs;
}

}  // namespace flanmoe
