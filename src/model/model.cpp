#include "model/model.hpp"

#include <algorithm>
#include <array>
#include <cmath>
#include <numeric>

#include "base/timer.hpp"
#include "model/model_state.hpp"
#include "moe/leaves.hpp"

namespace flanmoe {
Model::State::State(const Deck& deck_in, ParameterStore& store_in, const Communicators& communicators_in,
                    const Kernels& kernels_in)
    : deck(deck_in),
      store(store_in),
      communicators(communicators_in),
      kernels(kernels_in),
      tensors(model_tensors(deck_in.model, deck_in.moe)) {
  for (const bool is_encoder : {true, false}) {  // a decoder-only model has no encoder layers
    const auto& layers = is_encoder ? tensors.encoder.layers : tensors.decoder.layers;
    for (std::size_t l = 0; l < layers.size(); ++l) {
      if (layers[l].sparse) moe_layers.push_back(layer_name(is_encoder, std::int64_t(l)));
    }
  }
  if (!moe_layers.empty()) dispatcher.emplace(communicators.expert, deck);
  Dispatcher* shared = dispatcher ? &*dispatcher : nullptr;
  const auto sparse = std::count_if(tensors.encoder.layers.begin(), tensors.encoder.layers.end(),
                                    [](const auto& layer) { return layer.sparse; });
  const auto total = std::int64_t(moe_layers.size());
  if (!decoder_only()) {
    encoder = std::make_unique<Stack>(deck, true, tensors.encoder, tensors.embedding_VD, shared, 0, total);
  }
  decoder = std::make_unique<Stack>(deck, false, tensors.decoder, tensors.embedding_VD, shared, sparse, total);
}

CrossEntropyShape Model::State::cross_entropy_shape(double gradient_scale) const {
  CrossEntropyShape shape;
  shape.transpose_w = deck.model.tied_logits ? Transpose::yes : Transpose::no;
  shape.logit_scale = deck.model.tied_logits ? 1.0 / std::sqrt(double(deck.model.width)) : 1.0;
  shape.z_coefficient = deck.model.z_loss;
  shape.gradient_scale = gradient_scale;
  // So many rows of logits take no more memory than the gradient of their matrix, and leave it few sums of leaves.
  if (limits.leaves > 0) shape.chunk_rows = std::max(shape.chunk_rows, deck.model.width);
  return shape;
}

void Model::State::check_fits(const RaggedSide& inputs, const RaggedSide& targets) const {
  const BatchLimits most = stack_limits();
  const auto rows = std::int64_t(std::max(inputs.row_first.size(), targets.row_first.size())) - 1;
  FLANMOE_EXPECT(rows <= most.rows && inputs.tokens() <= most.encoder_tokens && targets.tokens() <= most.decoder_tokens,
                 "a microbatch of {} rows, {} encoder and {} decoder tokens does not fit the memory for {}, {}, {}",
                 rows, inputs.tokens(), targets.tokens(), most.rows, most.encoder_tokens, most.decoder_tokens);
  const auto longest = [](const RaggedSide& side) {
    const auto& counts = side.segment_count_S;
    return counts.empty() ? 0 : *std::max_element(counts.begin(), counts.end());
  };
  FLANMOE_EXPECT(longest(inputs) <= most.longest_input && longest(targets) <= most.longest_target,
                 "a segment of {} and {} tokens is longer than {} and {}", longest(inputs), longest(targets),
                 most.longest_input, most.longest_target);
}

void Model::State::bind(KernelContext& kernel, const PackedBatch& batch,
                        const std::vector<std::int32_t>& decoder_encoder_S, bool train) {
  // In evaluation every row is a routing group of its own, so that a row's result does not depend on its neighbours.
  const std::int64_t group_rows = train ? deck.moe.group_rows : 1;
  const std::int64_t leaves = train ? limits.cut() : 1;
  bind_leaves(target_leaf, batch.decoder.row_first, leaves);
  if (decoder_only()) {
    joined.build(batch, decoder_encoder_S, deck.model.attention == "prefix");
    check_fits({}, joined.side);
    decoder_side.bind(joined.side, batch.first_row, group_rows, batch.step_rows,
                      batch.step_encoder_tokens + batch.step_target_tokens, leaves);
    decoder_side.bind_prefix(joined.prefix_S);
    decoder_side.place(kernel, kernels.transfer, decoder_room, joined.side);
    return;
  }
  check_fits(batch.encoder, batch.decoder);
  encoder_side.bind(batch.encoder, batch.first_row, group_rows, batch.step_rows, batch.step_encoder_tokens, leaves);
  decoder_side.bind(batch.decoder, batch.first_row, group_rows, batch.step_rows, batch.step_target_tokens, leaves);
  decoder_side.bind_cross(batch.decoder, batch.encoder, decoder_encoder_S);
  encoder_side.place(kernel, kernels.transfer, encoder_room, batch.encoder);
  decoder_side.place(kernel, kernels.transfer, decoder_room, batch.decoder);
}

void Model::State::prepare(StepStatistics& statistics) const {
  if (statistics.moe.size() == moe_layers.size()) return;
  statistics.moe.resize(moe_layers.size());
  for (std::size_t i = 0; i < moe_layers.size(); ++i) {
    statistics.moe[i].layer = moe_layers[i];
    statistics.moe[i].load_E.assign(std::size_t(deck.moe.experts), 0.0);
  }
}

void Model::State::sum_losses(KernelContext& kernel) const {
  for (std::size_t leaf = 0; leaf + 1 < target_leaf.size(); ++leaf) {
    const std::int64_t first = target_leaf[leaf], tokens = target_leaf[leaf + 1] - first;
    const Tensor sums = loss_LS.slice_rows(std::int64_t(leaf), 1);
    std::int64_t place = 0;
    for (const Tensor* t : {&nll_T, &z_T, &hit_T}) {
      kernels.elementwise.sum(kernel, sums.slice_cols(place++, 1), t->slice_rows(first, tokens));
    }
  }
}

void Model::State::add_losses(KernelContext& kernel, StepStatistics& statistics) {
  const std::int64_t leaves = std::int64_t(target_leaf.size()) - 1;
  kernels.transfer.download(kernel, make_tensor(losses_LS.data(), leaves, 3), first_rows(loss_LS, leaves));
  LeafNumbers<3> sums;
  for (std::size_t leaf = 0; leaf < std::size_t(leaves); ++leaf) {
    sums.add({losses_LS[3 * leaf], losses_LS[3 * leaf + 1], losses_LS[3 * leaf + 2]});
  }
  statistics.nll += sums.sum()[0];
  statistics.z += sums.sum()[1];
  statistics.hits += sums.sum()[2];
  statistics.targets += double(target_leaf.back());
}

std::int64_t Model::State::chunk_leaves() const {
  const std::int64_t most = cross_entropy_shape(1.0).chunk_rows;
  const std::int64_t leaf_tokens = (stack_limits().decoder_tokens + limits.cut() - 1) / limits.cut();
  std::int64_t leaves = limits.cut();
  while (leaves > 1 && leaves * leaf_tokens > most) leaves /= 2;
  return leaves;
}

Model::Model(const Deck& deck, ParameterStore& store, const Communicators& communicators, const Kernels& kernels)
    : state_(std::make_unique<State>(deck, store, communicators, kernels)) {}
Model::~Model() = default;

const std::vector<std::string>& Model::moe_layers() const { return state_->moe_layers; }
const Deck& Model::deck() const { return state_->deck; }

void Model::State::lay_evaluation(Arena& activations, const BatchLimits& most) {
  const DType compute = store.compute(), a = accumulate_dtype(compute);
  const std::int64_t kv = deck.model.key_heads() * deck.model.head_width;
  cache.longest = most.longest_target;
  cache.layers.assign(tensors.decoder.layers.size(), {});
  for (auto& layer : cache.layers) {
    layer.self_k_CQ = activations.allocate(compute, limits.rows * most.longest_target, kv);
    layer.self_v_CQ = activations.allocate(compute, limits.rows * most.longest_target, kv);
    if (decoder_only()) continue;
    layer.cross_k_TQ = activations.allocate(compute, limits.encoder_tokens, kv);
    layer.cross_v_TQ = activations.allocate(compute, limits.encoder_tokens, kv);
  }
  cache.spare_CQ = {};
  if (deck.evaluate.beams > 1) cache.spare_CQ = activations.allocate(compute, limits.rows * most.longest_target, kv);
  const bool samples = deck.evaluate.temperature > 0;
  cache.weight_V.resize(samples ? std::size_t(deck.model.vocabulary) : 0);
  cache.order_V.resize(cache.weight_V.size());
  cache.logits_BV = activations.allocate(a, limits.rows, deck.model.vocabulary);
  cache.slot_T = list_room(kernels.transfer, activations, most.decoder_tokens);
  cache.last_B = list_room(kernels.transfer, activations, limits.rows);
  on_host->reserve(std::max(cache.logits_BV.bytes(), nll_T.bytes()));
}

void Model::lay(Arena& activations, Arena& scratch, const BatchLimits& limits, bool training) {
  State& s = *state_;
  s.limits = limits;
  s.training = training;
  const DType compute = s.store.compute();
  const DType a = accumulate_dtype(compute);
  const auto ranks = std::int64_t(s.communicators.expert.size());
  const BatchLimits most = s.stack_limits();
  if (s.encoder) s.encoder->lay(activations, compute, most, training, ranks);
  s.decoder->lay(activations, compute, most, training, ranks);
  s.decoder->lay_work(activations, s.kernels.transfer, s.work, compute, most, training, ranks);
  for (Tensor* t : {&s.nll_T, &s.z_T, &s.hit_T}) *t = activations.allocate(a, most.decoder_tokens, 1);
  s.on_host.emplace(s.kernels.transfer);
  s.loss_LS = activations.allocate(DType::f64, limits.cut(), 3);
  s.losses_LS.resize(std::size_t(s.loss_LS.size()));
  s.encoder_room.lay(activations, s.kernels.transfer, most.encoder_tokens);
  s.decoder_room.lay(activations, s.kernels.transfer, most.decoder_tokens);
  s.joined_T = list_room(s.kernels.transfer, activations, s.decoder_only() ? most.decoder_tokens : 0);
  s.target_T = list_room(s.kernels.transfer, activations, most.decoder_tokens);
  const Tensor dlogits = s.store.weight(s.logits());
  s.dlogits_waiting =
      activations.allocate(a, dlogits.rows, dlogits.cols, waiting_sums(limits.cut() / s.chunk_leaves()));
  for (auto* v : {&s.target_leaf, &s.chunk_leaf}) v->reserve(std::size_t(limits.cut()) + 1);
  if (s.decoder_only()) s.joined.reserve(most);
  s.encoder_side.reserve(most.encoder_tokens, most.rows, limits.cut());
  s.decoder_side.reserve(most.decoder_tokens, most.rows, limits.cut());
  if (!training) s.lay_evaluation(activations, most);
  const std::size_t scratch_bytes =
      kernel_scratch_bytes(s.kernels, s.deck, compute, most, s.cross_entropy_shape(1.0), ranks);
  scratch.allocate(DType::bf16, 1, std::int64_t(scratch_bytes + 1) / 2);
  scratch.rewind();
}

Tensor Model::State::forward(const LayerContext& c, StepStatistics& statistics) {
  if (!decoder_only()) {
    encoder->forward(c, work, encoder_side, nullptr, nullptr, statistics);
    return decoder->forward(c, work, decoder_side, encoder.get(), &encoder_side, statistics);
  }
  const Tensor out_TD = decoder->forward(c, work, decoder_side, nullptr, nullptr, statistics);
  const auto targets = std::int64_t(joined.place_T.size());
  const Tensor target_TD = first_rows(work.sublayer.part_TD, targets);
  kernels.permute.gather(c.context, target_TD, out_TD, list(c.context, joined_T, joined.place_T));
  return target_TD;
}

Tensor Model::State::target_gradient(std::int64_t targets) const {
  return first_rows(decoder_only() ? work.sublayer.dy_TD : work.dout_TD, targets);
}

void Model::State::add_lookups(const LayerContext& c, const Tensor& dx_TD, const Tensor& ids_T,
                               const std::vector<std::int64_t>& leaves) const {
  kernels.embedding.backward(c.context, c.lookup_gradient(tensors.embedding_VD), dx_TD, ids_T, leaves);
}

void Model::State::backward(const LayerContext& c, GradientBuckets& buckets) {
  if (decoder_only()) {
    const auto targets = std::int64_t(joined.place_T.size());
    const Tensor dout_TD = first_rows(work.dout_TD, decoder_side.tokens);
    kernels.elementwise.zero(c.context, dout_TD);
    kernels.permute.scatter(c.context, dout_TD, target_gradient(targets), list(c.context, joined_T, joined.place_T));
    decoder->backward(c, work, decoder_side, nullptr, nullptr, buckets);
    buckets.complete_before_that_of(tensors.embedding_VD);
    if (c.trains(tensors.embedding_VD)) {
      add_lookups(c, first_rows(work.dx_TD, decoder_side.tokens), decoder_side.ids_T, decoder_side.leaf_token);
    }
    return;
  }
  const Tensor dsource_TD = first_rows(work.dsource_TD, encoder_side.tokens);
  kernels.elementwise.zero(c.context, dsource_TD);
  // What both stacks looked up is one contribution to a sum over leaves.
  const auto looked_up = [&](const Side& side, const Side& other, bool behind) {
    if (!c.trains(tensors.embedding_VD)) return;
    const Tensor dx_TD = first_rows(work.dx_TD, side.tokens);
    if (limits.leaves == 0) {
      add_lookups(c, dx_TD, side.ids_T, side.leaf_token);
    } else {
      work.lookups.keep(c, dx_TD, side, other, behind);
    }
  };
  decoder->backward(c, work, decoder_side, encoder.get(), &encoder_side, buckets);
  looked_up(decoder_side, encoder_side, /*behind=*/false);
  if (!encoder->trains(store)) return;  // as far down as anything is trained
  kernels.elementwise.convert(c.context, first_rows(work.dout_TD, encoder_side.tokens), dsource_TD);
  encoder->backward(c, work, encoder_side, nullptr, nullptr, buckets);
  buckets.complete_before_that_of(tensors.embedding_VD);
  looked_up(encoder_side, decoder_side, /*behind=*/true);
  if (limits.leaves == 0 || !c.trains(tensors.embedding_VD)) return;
  const LookupWork& all = work.lookups;
  add_lookups(c, first_rows(all.dx_TD, all.leaves.back()), first_rows(all.ids_T, all.leaves.back()), all.leaves);
}

void Model::State::loss(const LayerContext& c, const PackedBatch& batch, const Tensor& decoded_TD) {
  const PartScope part(Part::logits);
  const Tensor ids_T = list(c.context, target_T, batch.target_T);
  CrossEntropyShape shape = cross_entropy_shape(1.0 / double(std::max<std::int64_t>(1, batch.step_target_tokens)));
  const float beta = c.beta(logits());
  const std::int64_t leaves = leaf_count(target_leaf), together = std::min(leaves, chunk_leaves());
  const Tensor dx_TD = target_gradient(ids_T.rows);
  const auto chunk = [&](std::int64_t index, const Tensor& dw) {
    const auto first_leaf = target_leaf.begin() + std::ptrdiff_t(index * together);
    const std::int64_t first = *first_leaf, count = *(first_leaf + std::ptrdiff_t(together)) - first;
    chunk_leaf.clear();
    for (std::int64_t leaf = 0; leaf <= together; ++leaf) {
      chunk_leaf.push_back(*(first_leaf + std::ptrdiff_t(leaf)) - first);
    }
    shape.leaves = chunk_leaf;
    shape.beta = leaves == together ? beta : 0.0F;
    const auto rows = [=](const Tensor& t) { return t.slice_rows(first, count); };
    kernels.cross_entropy.forward_backward(c.context, rows(nll_T), rows(z_T), rows(hit_T), rows(dx_TD), dw,
                                           rows(decoded_TD), c.weight(logits()), rows(ids_T), shape);
  };
  const Tensor dw = store.gradient(logits(), 0);
  if (dw.absent()) {
    for (std::int64_t index = 0; index < leaves / together; ++index) chunk(index, {});
  } else {
    add_along_tree(c, dw, dlogits_waiting, leaves / together, chunk);
  }
}

void Model::forward_backward(KernelContext& kernel, const PackedBatch& batch, StepStatistics& statistics,
                             const BucketListener& completed) {
  State& s = *state_;
  FLANMOE_EXPECT(s.training, "the model was laid for evaluation");
  const LayerContext c = s.context(kernel, true, batch.step);
  s.bind(kernel, batch, {}, true);
  s.prepare(statistics);
  s.loss(c, batch, s.forward(c, statistics));
  s.sum_losses(kernel);
  GradientBuckets buckets(c, completed);
  s.backward(c, buckets);
  buckets.complete_before(s.store.buckets());
  s.add_losses(kernel, statistics);  // last: until here a device needs no answer of the host
}

std::vector<float> Model::evaluate(KernelContext& kernel, const PackedBatch& batch,
                                   const std::vector<std::int32_t>& decoder_encoder_S, StepStatistics& statistics) {
  State& s = *state_;
  const LayerContext c = s.context(kernel, false, batch.step);
  s.bind(kernel, batch, decoder_encoder_S, false);
  s.prepare(statistics);
  const auto tokens = std::int64_t(batch.target_T.size());
  const auto rows = [tokens](const Tensor& t) { return first_rows(t, tokens); };
  const Tensor decoded_TD = s.forward(c, statistics);
  const PartScope part(Part::logits);
  const Tensor target_T = s.list(kernel, s.target_T, batch.target_T);
  s.kernels.cross_entropy.forward_backward(kernel, rows(s.nll_T), rows(s.z_T), rows(s.hit_T), {}, {}, decoded_TD,
                                           c.weight(s.logits()), target_T, s.cross_entropy_shape(0.0));
  s.sum_losses(kernel);
  s.add_losses(kernel, statistics);
  const Tensor nll_T = s.on_host->read(kernel, rows(s.nll_T));
  std::vector<float> nll(std::size_t(tokens), 0.0F);
  for (std::int64_t t = 0; t < tokens; ++t) {
    nll[std::size_t(t)] = nll_T.dtype == DType::f64 ? float(*nll_T.row<double>(t)) : *nll_T.row<float>(t);
  }
  return nll;
}

void StepStatistics::reset() {
  nll = z = hits = targets = 0;
  for (MoeLayerStatistics& layer : moe) {
    std::fill(layer.load_E.begin(), layer.load_E.end(), 0.0);
    layer.tokens = layer.dropped = layer.unrouted = layer.balance = layer.z = layer.entropy = 0;
  }
}

std::vector<double> StepStatistics::pack() const {
  std::vector<double> values{nll, z, hits, targets};
  for (const MoeLayerStatistics& layer : moe) {
    values.insert(values.end(), {layer.tokens, layer.dropped, layer.unrouted, layer.balance, layer.z, layer.entropy});
    values.insert(values.end(), layer.load_E.begin(), layer.load_E.end());
  }
  return values;
}

void StepStatistics::unpack(const std::vector<double>& values) {
  std::size_t next = 0;
  const auto take = [&] {
    FLANMOE_EXPECT(next < values.size(), "{} numbers are too few for these statistics", values.size());
    return values[next++];
  };
  for (double* value : {&nll, &z, &hits, &targets}) *value = take();
  for (MoeLayerStatistics& layer : moe) {
    for (double* value : {&layer.tokens, &layer.dropped, &layer.unrouted, &layer.balance, &layer.z, &layer.entropy}) {
      *value = take();
    }
    for (double& load : layer.load_E) load = take();
  }
  FLANMOE_EXPECT(next == values.size(), "{} numbers are left over", values.size() - next);
}

double auxiliary_loss(const StepStatistics& statistics, const MoeDeck& moe) {
  double sum = 0.0;
  for (const MoeLayerStatistics& layer : statistics.moe) {
    sum += moe.balance_coefficient * layer.balance + moe.z_coefficient * layer.z;
  }
  return sum * auxiliary_share(moe, std::int64_t(statistics.moe.size()));
}

}  // namespace flanmoe
