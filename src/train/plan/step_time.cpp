#include "train/plan/step_time.hpp"

#include <algorithm>
#include <bit>
#include <cmath>
#include <numeric>

#include "moe/routing.hpp"
#include "train/trainer.hpp"

namespace flanmoe {
namespace {

/// Adds up the work of a step, part by part. Token counts are those of the step; products run a microbatch at a time.
class Estimate {
 public:
  Estimate(const Deck& deck, const ProcessGrid& grid, const Machine& machine, double microbatches)
      : deck_(deck),
        grid_(grid),
        machine_(machine),
        compute_(compute_type(deck.run)),
        microbatches_(microbatches),
        D_(double(deck.model.width)),
        F_(double(deck.model.hidden)),
        Q_(double(deck.model.heads * deck.model.head_width)),
        KV_(double(deck.model.key_heads() * deck.model.head_width)) {}

  void attention(double layers, double tokens, double source_tokens, double pairs, bool cross);
  void dense(double layers, double tokens);
  void sparse(double layers, double tokens, double copies, bool encoder);
  void ends(double encoder_tokens, double decoder_tokens, double targets);
  void optimizer(const ParameterStore& store);
  void communication(const ParameterStore& store, const StepTraffic& traffic, double copies_of_plan, double copies);

  StepTime time;

 private:
  void stream(Part part, Stream kind, double elements) { time[part] += elements * machine_.stream(kind, compute_); }
  /// y = x w and its two gradients for `groups` equal weights in..out; rows over all groups.
  void products(Part part, double calls, double groups, double rows, double in, double out, DType type);
  void feed_forward(Part part, double calls, double groups, double rows, double hidden);
  void dropout(Part part, double elements) {
    if (deck_.model.dropout > 0) stream(part, Stream::dropout, elements);
  }
  double seconds_of(const CollectiveCount& count, double ranks, double share_near) const;
  double share_near(double ranks, double stride) const;

  const Deck& deck_;
  const ProcessGrid& grid_;
  const Machine& machine_;
  DType compute_;
  double microbatches_, D_, F_, Q_, KV_;
};

void Estimate::products(Part part, double calls, double groups, double rows, double in, double out, DType type) {
  const std::size_t p = precision_index(type);
  const double c = type == DType::bf16 ? 2 : 4, a = 4;
  const double each = calls * groups * microbatches_;  // products of one kind
  const double operations = calls * rows * in * out * 2;
  const double weights = each * in * out, activations = calls * rows * (in + out);
  time[part] += 2 * machine_.product[p].seconds(each, operations, c * (weights + activations)) +
                machine_.weight_gradient[p].seconds(each, operations, 2 * a * weights + c * activations);
}

void Estimate::feed_forward(Part part, double calls, double groups, double rows, double hidden) {
  const double inputs = deck_.model.gated() ? 2 : 1;
  products(part, calls * inputs, groups, rows, D_, hidden, compute_);
  products(part, calls, groups, rows, hidden, D_, compute_);
  stream(part, deck_.model.gated() ? Stream::gated : Stream::relu, calls * rows * hidden);
  if (deck_.model.gated()) stream(part, Stream::residual, calls * rows * D_);
  if (deck_.model.multiplicative_bias) stream(part, Stream::relu, calls * rows * hidden);
}

void Estimate::attention(double layers, double tokens, double source_tokens, double pairs, bool cross) {
  const Part part = Part::attention;
  stream(part, Stream::norm, layers * tokens * D_);
  products(part, layers, 1, tokens, D_, Q_, compute_);
  products(part, 2 * layers, 1, cross ? source_tokens : tokens, D_, KV_, compute_);
  products(part, layers, 1, tokens, Q_, D_, compute_);
  const AttentionRate& rate = machine_.attention[precision_index(compute_)];
  // Two products forward, five backward (the scores once more).
  time[part] += layers * (14 * pairs * Q_ / rate.flops + tokens * Q_ * rate.element_seconds);
  stream(part, Stream::residual, layers * tokens * D_);
  dropout(part, layers * (tokens * D_ + source_tokens * KV_));
}

void Estimate::dense(double layers, double tokens) {
  const Part part = Part::dense_ffn;
  if (!deck_.model.decoder_only()) stream(part, Stream::norm, layers * tokens * D_);
  feed_forward(part, layers, 1, tokens, F_);
  stream(part, Stream::residual, layers * tokens * D_);
  dropout(part, layers * tokens * (D_ + F_));
}

void Estimate::sparse(double layers, double tokens, double copies, bool encoder) {
  if (layers == 0) return;
  const MoeDeck& moe = deck_.moe;
  const auto E = double(moe.experts);
  const double local = E / grid_.expert_size();
  // 1. Router, in fp32.
  products(Part::routing, layers, 1, tokens, D_, E, DType::f32);
  const Routing routing = routing_of(moe, encoder);
  const double passes = routing.expert_choice ? 2 : 1;  // tables of copies have a column per expert
  stream(Part::routing, Stream::router, layers * tokens * E * passes);
  if (moe.jitter > 0) stream(Part::routing, Stream::dropout, 1.5 * layers * tokens * D_);  // a mask drawn three times
  if (compute_ == DType::bf16 || moe.jitter > 0) stream(Part::routing, Stream::residual, layers * tokens * D_ / 2);
  // 2. To the experts and back; among several ranks rows are put in order on arrival too.
  stream(Part::routing, Stream::permute, copies * D_ * (grid_.expert_size() > 1 ? 2 : 1));
  // 3. Experts.
  feed_forward(Part::experts, layers, local, copies / layers, F_);
  if (moe.expert_dropout > 0) stream(Part::experts, Stream::dropout, copies * F_);
  if (moe.shared_experts > 0) feed_forward(Part::experts, layers, 1, tokens, double(moe.shared_experts) * F_);
  // 4. The sublayer around it.
  if (!deck_.model.decoder_only()) stream(Part::experts, Stream::norm, layers * tokens * D_);
  stream(Part::experts, Stream::residual, layers * tokens * D_);
  dropout(Part::experts, layers * tokens * D_);
  if (moe.extra_feed_forward) dense(layers, tokens);
}

void Estimate::ends(double encoder_tokens, double decoder_tokens, double targets) {
  const double tokens = encoder_tokens + decoder_tokens;
  stream(Part::other, Stream::embedding, tokens * D_);
  stream(Part::other, Stream::norm, tokens * D_);
  dropout(Part::other, 2 * tokens * D_);
  const auto V = double(deck_.model.vocabulary);
  // The loss goes through its tokens in chunks, each with products of its own.
  const double chunk = std::min(double(CrossEntropyShape{}.chunk_rows), std::max(1.0, targets / microbatches_));
  const double calls = std::max(1.0, targets / microbatches_ / chunk);
  products(Part::logits, calls, 1, targets / calls, D_, V, compute_);
  stream(Part::logits, Stream::softmax, targets * V);
}

void Estimate::optimizer(const ParameterStore& store) {
  double all = 0;
  for (const Placement placement : {Placement::dense, Placement::expert}) {
    for (const ParameterUnit& unit : store.units(placement)) {
      const ParameterSpec& spec = store.specs()[std::size_t(unit.parameter)];
      const auto elements = double(unit.rows * spec.cols);
      all += elements;
      if (unit.owner != store.replica_rank(placement)) continue;
      const Stream update = deck_.optimizer.name == "adamw"                   ? Stream::adamw
                            : spec.factored(deck_.optimizer.factor_threshold) ? Stream::factored
                                                                              : Stream::unfactored;
      stream(Part::optimizer, update, elements);
    }
  }
  stream(Part::optimizer, Stream::publish, all);
}

/// Share of the other ranks of a group that are on this rank's node; neighbours in the group are `stride` ranks apart.
double Estimate::share_near(double ranks, double stride) const {
  if (ranks <= 1) return 1;
  const double near = std::min(ranks, std::max(1.0, std::floor(double(machine_.ranks_per_node) / stride)));
  return (near - 1) / (ranks - 1);
}

double Estimate::seconds_of(const CollectiveCount& count, double ranks, double near) const {
  if (count.calls == 0 || ranks <= 1) return 0;
  const auto over = [&](const LinkRate& link, double share) {
    return share * (double(count.messages) * link.latency_seconds + double(count.bytes) / link.bytes_per_second);
  };
  return over(machine_.in_node, near) + over(machine_.between_nodes, 1 - near);
}

void Estimate::communication(const ParameterStore& store, const StepTraffic& traffic, double copies_of_plan,
                             double copies) {
  const auto group = [&](const Traffic& counts, double ranks, double stride, bool routes) {
    const double near = share_near(ranks, stride);
    for (std::size_t i = 0; i < counts.kinds.size(); ++i) {
      CollectiveCount count = counts.kinds[i];
      const auto kind = CollectiveKind(i);
      const double others = ranks - 1;
      if (routes && kind == CollectiveKind::all_to_all_rows && copies_of_plan > 0) {
        count.bytes = std::uint64_t(double(count.bytes) * copies / copies_of_plan);
      }
      // What everybody gets passes every rank; gathers and sums need as many rounds as the ranks have binary digits.
      const bool gathers = kind == CollectiveKind::all_gather || kind == CollectiveKind::all_gather_segments;
      if (gathers || kind == CollectiveKind::all_reduce) {
        count.messages = std::uint64_t(std::ceil(double(count.calls) * (std::log2(ranks))));
        count.bytes = std::uint64_t(double(count.bytes) * (gathers ? others : 2.0));
      }
      time[Part::communication] += seconds_of(count, ranks, near);
    }
  };
  group(traffic.world, grid_.world_size(), 1, false);
  group(traffic.data, grid_.data_size(), grid_.expert_size(), false);
  group(traffic.expert, grid_.expert_size(), 1, true);
  for (const Placement placement : {Placement::dense, Placement::expert}) {  // sums of what others sent
    const int ranks = store.replica_size(placement);
    if (ranks == 1) continue;
    const auto& sizes = store.owned_sizes(placement);
    const auto own = double(sizes[std::size_t(store.replica_rank(placement))]);
    const double others = double(std::accumulate(sizes.begin(), sizes.end(), std::int64_t{0})) - own;
    // Halving adds what is left to what came, round by round; else all contributions to the own segment come first.
    const double moved = std::has_single_bit(unsigned(ranks)) ? 3 * others : own * (ranks + 1);
    time[Part::communication] += 4 * moved / machine_.bytes_per_second;
  }
}

}  // namespace

double StepTime::total() const { return std::accumulate(seconds.begin(), seconds.end(), 0.0); }

WorkCounts full_work(const Deck& deck, const ProcessGrid& grid) {
  const double rows = double(RankRows::of(deck, grid).rows);
  auto numbers = full_row(deck).pack();
  for (double& number : numbers) number *= rows;
  return WorkCounts::unpack(numbers.data());
}

StepTime predict_time(const Deck& deck, const ProcessGrid& grid, const ParameterStore& store, const Machine& machine,
                      const WorkCounts& work, const StepTraffic& traffic) {
  const ModelDeck& model = deck.model;
  const MoeDeck& moe = deck.moe;
  const RankRows rows = RankRows::of(deck, grid);
  Estimate estimate(deck, grid, machine, double(rows.rows) / double(rows.microbatch));
  const auto sparse_encoder = double(sparse_layers(moe, moe.encoder, model.encoder_layers));
  const auto sparse_decoder = double(sparse_layers(moe, moe.decoder, model.decoder_layers));
  const auto encoder = double(model.encoder_layers), decoder = double(model.decoder_layers);

  if (encoder > 0) estimate.attention(encoder, work.encoder_tokens, work.encoder_tokens, work.encoder_pairs, false);
  estimate.attention(decoder, work.decoder_tokens, work.decoder_tokens, work.decoder_pairs, false);
  if (!model.decoder_only()) {
    estimate.attention(decoder, work.decoder_tokens, work.encoder_tokens, work.cross_pairs, true);
  }
  estimate.dense(encoder - sparse_encoder, work.encoder_tokens);
  estimate.dense(decoder - sparse_decoder, work.decoder_tokens);
  // Copies are known over both stacks; they share them as their tokens do.
  const double sparse_tokens = sparse_encoder * work.encoder_tokens + sparse_decoder * work.decoder_tokens;
  const auto copies = [&](double layers, double tokens) {
    return sparse_tokens > 0 ? work.routed_copies * layers * tokens / sparse_tokens : 0;
  };
  estimate.sparse(sparse_encoder, work.encoder_tokens, copies(sparse_encoder, work.encoder_tokens), true);
  estimate.sparse(sparse_decoder, work.decoder_tokens, copies(sparse_decoder, work.decoder_tokens), false);
  estimate.ends(work.encoder_tokens, work.decoder_tokens, work.target_tokens);
  estimate.optimizer(store);
  estimate.communication(store, traffic, full_work(deck, grid).routed_copies, work.routed_copies);
  return estimate.time;
}

}  // namespace flanmoe
