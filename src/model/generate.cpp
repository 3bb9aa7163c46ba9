// Decoding with a KV cache: greedy, sampled or by beam search.
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
  std::vector<std::int32_t> slot_B;                            // rows of the self cache that new keys go to
};

/// Points the step at the slots in `active`, whose newest tokens are `newest`. Input i of the batch owns the slots
/// [i * beams, (i + 1) * beams), and a slot owns `longest` rows of the self cache.
void bind_step(DecodingStep& step, const std::vector<std::int32_t>& active, const TokenIds& newest,
               const RaggedSide& encoder, std::int64_t beams, std::int64_t position, std::int64_t longest) {
  step.batch = {};
  step.batch.row_first.assign(1, 0);
  step.key_begin_S.clear();
  step.key_count_S.assign(active.size(), std::int32_t(position + 1));
  step.encoder_begin_S.clear();
  step.encoder_count_S.clear();
  step.slot_B.clear();
  for (const std::int32_t slot : active) {
    const auto input = std::size_t(slot / beams);
    append_row(step.batch, {newest[std::size_t(slot)]});
    step.key_begin_S.push_back(std::int32_t(slot * longest));
    step.slot_B.push_back(std::int32_t(slot * longest + position));
    step.encoder_begin_S.push_back(encoder.segment_begin_S[input]);
    step.encoder_count_S.push_back(encoder.segment_count_S[input]);
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
void decode_position(const LayerContext& c, Model::State& s, const DecodingStep& step, std::int64_t input_tokens,
                     StepStatistics& statistics) {
  StackActivations& a = s.decoder->activations();
  const Side& side = step.side;
  const auto rows = [&](const Tensor& t) { return first_rows(t, side.tokens); };
  const AttentionSegments self{side.self.query_begin, side.self.query_count, step.key_begin_S, step.key_count_S};
  const AttentionSegments cross{side.self.query_begin, side.self.query_count, step.encoder_begin_S,
                                step.encoder_count_S};
  const Tensor slot_B = s.list(c.context, s.cache.slot_T, step.slot_B);
  s.decoder->embed(c, side);
  for (std::size_t l = 0; l < s.cache.layers.size(); ++l) {
    LayerActivations& saved = a.layers[l];
    const LayerTensors<int>& w = s.tensors.decoder.layers[l];
    DecodingCache::Layer& cache = s.cache.layers[l];
    const auto normalize = [&](AttentionActivations& act, int scale, const Tensor& x_TD) {
      c.norm().forward(c.context, rows(act.y_TD), rows(act.rstd_T), x_TD, c.weight(scale),
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

/// A batch that is being decoded.
struct Decoding {
  const DecodingOptions& options;
  std::span<const GenerateRequest> requests;
  std::span<Generated> outputs;      // of the requests
  std::vector<BeamSearch> searches;  // of the requests; beam search only
  std::vector<std::int32_t> active;  // slots that go on, ascending
  std::vector<std::int32_t> parent;  // beam search: the slot whose keys and values each active one continues
  TokenIds newest;                   // of every slot
  Tensor logit_BV{};                 // of the active slots, on the host
};

/// The tokens that a decoder-only model has not seen yet: first the input behind a pad, later the newest one of each
/// row.
std::vector<NewTokens> unseen_tokens(const Decoding& d, const RaggedSide& inputs, std::int64_t position) {
  std::vector<NewTokens> news;
  for (const std::int32_t slot : d.active) {
    const auto row = std::size_t(slot / d.options.beams);
    const std::int32_t count = inputs.segment_count_S[row];
    if (position > 0) {
      news.push_back({slot, count + std::int32_t(position), {d.newest[std::size_t(slot)]}});
      continue;
    }
    const auto input = inputs.token_T.begin() + inputs.segment_begin_S[row];
    news.push_back({slot, 0, {kPad}});
    news.back().tokens.insert(news.back().tokens.end(), input, input + count);
  }
  return news;
}

template <class T>
std::span<const T> logits_of(const Decoding& d, std::size_t i) {
  return {d.logit_BV.row<T>(std::int64_t(i)), std::size_t(d.logit_BV.cols)};
}

/// Adds one token to every active row, greedily or by sampling; rows that end become inactive.
template <class T>
void choose_tokens(Model::State& s, Decoding& d, std::int64_t position, double logit_scale) {
  std::vector<std::int32_t> still_active;
  for (std::size_t i = 0; i < d.active.size(); ++i) {
    const auto row = std::size_t(d.active[i]);
    Generated& output = d.outputs[row];
    const auto logit_V = logits_of<T>(d, i);
    std::int32_t id = 0;
    if (d.options.temperature > 0) {
      const double uniform = decoding_uniform(d.options.seed, d.requests[row].id, position);
      id = sample_token(logit_V, logit_scale, d.options, uniform, {s.cache.weight_V, s.cache.order_V});
    } else {
      id = argmax(logit_V);
    }
    if (id != kEos) output.tokens.push_back(id);
    output.ended = id == kEos || (d.options.ends && d.options.ends(output.tokens));
    if (output.ended) continue;
    d.newest[row] = id;
    still_active.push_back(d.active[i]);
  }
  d.active = std::move(still_active);
}

/// One step of every beam search that goes on.
template <class T>
void advance_beams(Decoding& d, double logit_scale) {
  const auto beams = std::size_t(d.options.beams);
  std::vector<std::int32_t> still_active;
  d.parent.clear();
  for (std::size_t i = 0; i < d.active.size();) {
    const std::size_t input = std::size_t(d.active[i]) / beams;
    BeamSearch& search = d.searches[input];
    const std::size_t live = search.live().size();
    for (std::size_t b = 0; b < live; ++b) search.offer(std::int32_t(b), logits_of<T>(d, i + b), logit_scale);
    i += live;
    search.advance();
    if (search.done()) continue;
    for (std::size_t b = 0; b < search.live().size(); ++b) {
      const BeamSearch::Beam& beam = search.live()[b];
      d.newest[input * beams + b] = beam.tokens.back();
      still_active.push_back(std::int32_t(input * beams + b));
      d.parent.push_back(std::int32_t(input * beams) + beam.parent);
    }
  }
  d.active = std::move(still_active);
}

/// Gives every active slot the keys and values of its parent, `count` of generated tokens. Those of the input stand
/// before them in a decoder-only model.
void reorder_caches(const LayerContext& c, Model::State& s, const Decoding& d, std::int64_t count) {
  if (d.active == d.parent) return;
  const auto keys_of = [&](const Tensor& cache_CQ, std::int32_t slot) {
    const auto input = std::int64_t(d.requests[std::size_t(slot / d.options.beams)].input.size());
    return cache_CQ.slice_rows(slot * s.cache.longest, count + (s.decoder_only() ? input : 0));
  };
  for (DecodingCache::Layer& layer : s.cache.layers) {
    for (Tensor* cache_CQ : {&layer.self_k_CQ, &layer.self_v_CQ}) {
      for (std::size_t i = 0; i < d.active.size(); ++i) {
        c.k.elementwise.convert(c.context, keys_of(s.cache.spare_CQ, d.active[i]), keys_of(*cache_CQ, d.parent[i]));
      }
      std::swap(*cache_CQ, s.cache.spare_CQ);
    }
  }
}

void next_tokens(const LayerContext& c, Model::State& s, Decoding& d, std::int64_t position) {
  const double logit_scale = s.cross_entropy_shape(0.0).logit_scale;
  const bool wide = s.cache.logits_BV.dtype == DType::f64;
  d.logit_BV = s.on_host->read(c.context, first_rows(s.cache.logits_BV, std::int64_t(d.active.size())));
  if (d.options.beams == 1) {
    wide ? choose_tokens<double>(s, d, position, logit_scale) : choose_tokens<float>(s, d, position, logit_scale);
    return;
  }
  wide ? advance_beams<double>(d, logit_scale) : advance_beams<float>(d, logit_scale);
  reorder_caches(c, s, d, position + 1);
}

/// Decodes some requests at once. Every rank of the expert group calls it the same number of times.
void decode_batch(Model::State& s, KernelContext& kernel, std::span<const GenerateRequest> requests,
                  const DecodingOptions& options, std::span<Generated> outputs) {
  const LayerContext c = s.context(kernel, false, 0);
  StepStatistics statistics;
  s.prepare(statistics);
  PackedBatch batch;
  batch.rows = std::int64_t(requests.size());
  for (const GenerateRequest& request : requests) append_row(batch.encoder, request.input);
  if (batch.encoder.row_first.empty()) batch.encoder.row_first.assign(1, 0);
  batch.decoder.row_first.assign(1, 0);
  if (!s.decoder_only()) {
    s.check_fits(batch.encoder, batch.decoder);
    s.encoder_side.bind(batch.encoder, 0, 1, 1, 1);
    s.encoder_side.place(kernel, s.kernels.transfer, s.encoder_room, batch.encoder);
    const Tensor encoded_TD = s.encoder->forward(c, s.work, s.encoder_side, nullptr, nullptr, statistics);
    fill_cross_cache(c, s, encoded_TD);
  }
  s.decoder->expand_positions(c);

  Decoding d{options, requests, outputs, {}, {}, {}, TokenIds(requests.size() * std::size_t(options.beams), kPad)};
  for (std::size_t i = 0; i < requests.size(); ++i) d.active.push_back(std::int32_t(std::int64_t(i) * options.beams));
  if (options.beams > 1) d.searches = std::vector<BeamSearch>(requests.size(), BeamSearch(options));
  DecodingStep step;
  for (std::int64_t position = 0; position < options.max_new_tokens; ++position) {
    // Ranks whose rows have all ended still take part in the exchanges of the sparse layers.
    const auto left = s.communicators.expert.all_reduce(std::int64_t(d.active.size()), ReduceOp::max);
    if (left == 0) break;
    if (s.decoder_only()) {
      extend_rows(c, s, unseen_tokens(d, batch.encoder, position), statistics);
    } else {
      bind_step(step, d.active, d.newest, batch.encoder, options.beams, position, s.cache.longest);
      step.side.place(kernel, s.kernels.transfer, s.decoder_room, step.batch);
      decode_position(c, s, step, s.encoder_side.tokens, statistics);
    }
    next_tokens(c, s, d, position);
  }
  for (std::size_t i = 0; i < d.searches.size(); ++i) outputs[i] = d.searches[i].result();
}

/// Where batches begin: as many requests as rows and encoder tokens allow.
std::vector<std::size_t> cut_batches(const std::vector<GenerateRequest>& requests, const BatchLimits& limits,
                                     std::int64_t beams) {
  std::vector<std::size_t> cuts{0};
  std::int64_t tokens = 0;
  for (std::size_t i = 0; i < requests.size(); ++i) {
    const auto count = std::int64_t(requests[i].input.size());
    if ((std::int64_t(i - cuts.back()) + 1) * beams > limits.rows || tokens + count > limits.encoder_tokens) {
      cuts.push_back(i);
      tokens = 0;
    }
    tokens += count;
  }
  return cuts;
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

std::vector<Generated> generate(Model& model, KernelContext& kernel, const std::vector<GenerateRequest>& requests,
                                const DecodingOptions& options) {
  Model::State& s = model.state();
  FLANMOE_EXPECT(!s.training && options.max_new_tokens <= s.limits.longest_target && options.beams >= 1 &&
                     options.beams <= s.limits.rows && s.limits.rows <= s.limits.decoder_tokens,
                 "decoding {} tokens with {} beams needs a model laid for evaluation with room for them ({} and {})",
                 options.max_new_tokens, options.beams, s.limits.longest_target, s.limits.rows);
  FLANMOE_EXPECT(
      (options.beams == 1 || !s.cache.spare_CQ.absent()) && (options.temperature == 0 || !s.cache.weight_V.empty()),
      "{} beams at temperature {} need memory that was not laid", options.beams, options.temperature);
  std::vector<GenerateRequest> trimmed = requests;
  for (GenerateRequest& r : trimmed) r.input = with_eos(std::move(r.input), s.limits.longest_input);
  std::vector<std::size_t> cuts = cut_batches(trimmed, s.limits, options.beams);
  const auto mine = std::int64_t(trimmed.empty() ? 0 : cuts.size());
  const std::int64_t batches = s.communicators.expert.all_reduce(mine, ReduceOp::max);
  cuts.resize(std::size_t(batches) + 1, trimmed.size());  // ranks with fewer batches end with empty ones
  std::vector<Generated> outputs(trimmed.size());
  for (std::int64_t b = 0; b < batches; ++b) {
    const std::size_t first = cuts[std::size_t(b)], count = cuts[std::size_t(b) + 1] - first;
    decode_batch(s, kernel, std::span(trimmed).subspan(first, count), options,
                 std::span(outputs).subspan(first, count));
  }
  return outputs;
}

std::vector<TokenIds> generate_greedy(Model& model, KernelContext& kernel, const std::vector<TokenIds>& inputs,
                                      std::int64_t max_new_tokens) {
  std::vector<GenerateRequest> requests;
  for (const TokenIds& input : inputs) requests.push_back({input, 0});
  std::vector<TokenIds> tokens;
  for (Generated& g : generate(model, kernel, requests, {.max_new_tokens = max_new_tokens})) {
    tokens.push_back(std::move(g.tokens));
  }
  return tokens;
}

}  // namespace flanmoe
