// A whole training step of a T5-base-sized model: forward, backward, optimizer; tokens per second, share of the roof
// and where the time goes. And what sums in leaves cost.
#include <algorithm>
#include <array>
#include <random>

#include "base/timer.hpp"
#include "kernels/bench/bench.hpp"
#include "train/trainer.hpp"

namespace flanmoe::bench {
namespace {

/// Routing of the tokens by a fresh router, routing in turn (moe.forced_balance), and the dense twin of equal work.
enum class Variant { routed, balanced, dense };

const char* name_of(Variant variant) {
  switch (variant) {
    case Variant::routed: return "training step, MoE, 8 experts, top-1";
    case Variant::balanced: return "training step, MoE, forced balance";
    case Variant::dense: return "training step, dense twin";
  }
  return "";
}

Deck base_deck(const Subject& subject, DType compute, Variant variant, std::int64_t leaves) {
  Deck deck;
  deck.reduction.leaves = leaves;
  deck.run.device = subject.k.device;
  deck.run.precision = compute == DType::bf16 ? "bf16" : "fp32";
  // 512 tokens a row; 4,096 a step on the host, more where that would leave a GPU idle.
  const std::int64_t rows = subject.size(subject.on_host() ? 8 : 64, 2);
  deck.batch = {.rows = rows,
                .microbatch_rows = rows,
                .input_length = subject.size(398, 16),
                .target_length = subject.size(114, 8)};
  deck.model.vocabulary = subject.size(32128, 300);
  deck.model.width = subject.size(768, 32);
  deck.model.hidden = subject.size(2048, 64);
  deck.model.heads = subject.size(12, 2);
  deck.model.head_width = subject.size(64, 16);
  deck.model.encoder_layers = deck.model.decoder_layers = subject.size(12, 2);
  deck.moe.router = variant == Variant::dense ? "none" : "top_k";
  deck.moe.forced_balance = variant == Variant::balanced;
  deck.moe.experts = 8;
  deck.checkpoint.background = false;  // nothing is saved
  return deck;
}

/// Rows of one full segment each, with random tokens.
PackedBatch full_batch(const Deck& deck) {
  std::mt19937 random(1);
  PackedBatch batch;
  batch.rows = batch.step_rows = deck.batch.rows;
  const auto fill = [&](RaggedSide& side, std::int64_t length) {
    side.row_first.assign(1, 0);
    for (std::int64_t r = 0; r < batch.rows; ++r) {
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
  batch.segment_row_S.resize(std::size_t(batch.rows));
  batch.segment_task_S.resize(std::size_t(batch.rows));
  batch.step_encoder_tokens = batch.encoder.tokens();
  batch.step_target_tokens = batch.decoder.tokens();
  return batch;
}

/// A model in training on one rank, its steps so far and the fastest of them.
struct Run {
  Run(const Subject& subject, Deck of_model)
      : deck(std::move(of_model)), trainer(deck, grid, communicators, subject.context), batch{full_batch(deck)} {
    trainer.commit_memory();
    trainer.start_from_seed();
    outcome = trainer.step(steps++, batch, false);  // primitives are made, memory is touched
  }
  double tokens() const { return double(deck.batch.rows * (deck.batch.input_length + deck.batch.target_length)); }
  void step() {
    const auto before = part_seconds();
    const double start = seconds_now();
    outcome = trainer.step(steps++, batch, false);
    const double taken = seconds_now() - start;
    seconds.push_back(taken);
    if (taken >= best) return;
    best = taken;
    for (std::size_t i = 0; i < parts.size(); ++i) parts[i] = part_seconds()[i] - before[i];
  }

  const Communicator world = Communicator::world();
  const ProcessGrid grid{1, 0, 1};
  const Communicators communicators = Communicators::make(world, grid);
  Deck deck;
  Trainer trainer;
  std::vector<PackedBatch> batch;
  std::int64_t steps = 0;
  Trainer::StepOutcome outcome;
  std::vector<double> seconds;
  double best = 1e30;
  std::array<double, std::size_t(Part::count)> parts{};
};

Measurement report(const Subject& subject, const Run& run, Variant variant) {
  Measurement m;
  const BatchDeck& batch = run.deck.batch;
  const double tokens = run.tokens() / run.best;
  m.name = name_of(variant);
  m.precision = run.deck.run.precision;
  m.shape = fmt::format("{}, {} rows of {}+{} tokens", subject.quick ? "tiny" : "T5-base", batch.rows,
                        batch.input_length, batch.target_length);
  m.seconds = run.best;
  m.flops = training_flops(run.deck.model, run.deck.moe, run.outcome.work).total();
  m.more["tokens_per_second"] = tokens;
  m.more["forced_balance"] = run.deck.moe.forced_balance;
  std::string text;
  for (int i = 0; i < int(Part::count); ++i) {
    const double seconds = run.parts[std::size_t(i)];
    m.more["seconds_by_part"][name_of(Part(i))] = seconds;
    if (seconds >= 0.005 * run.best) text += fmt::format("  {} {:.2f} s", name_of(Part(i)), seconds);
  }
  fmt::print("{:.0f} tokens/s, {} {}; best of {} steps:{}\n", tokens, m.precision, m.name, run.steps - 1, text);
  return m;
}

/// Real routing is never shown without the routing that no training can have, nor the other way round.
std::vector<Measurement> steps(const Subject& subject) {
  std::vector<Measurement> results;
  const std::size_t least = subject.quick ? 1 : 2;
  const double long_enough = subject.quick ? 0.0 : 5.0;
  for (const DType compute : {DType::f32, DType::bf16}) {
    for (const Variant variant : {Variant::routed, Variant::balanced, Variant::dense}) {
      Run run(subject, base_deck(subject, compute, variant, 0));
      for (const double begin = seconds_now(); run.seconds.size() < least || seconds_now() - begin < long_enough;) {
        run.step();
      }
      results.push_back(report(subject, run, variant));
    }
  }
  return results;
}

double median(std::vector<double> values) {
  const auto middle = values.begin() + std::ptrdiff_t(values.size() / 2);
  std::nth_element(values.begin(), middle, values.end());
  return *middle;
}

/// Two models that take turns, step by step, because a machine gets slower and faster within minutes. They have half of
/// the layers, so that both fit where one whole model does.
std::vector<Measurement> leaf_steps(const Subject& subject, DType compute) {
  if (!subject.on_host()) return {};  // the only device that sums leaf by leaf
  const auto half = [&](std::int64_t leaves) {
    Deck deck = base_deck(subject, compute, Variant::routed, leaves);
    deck.model.encoder_layers /= 2;
    deck.model.decoder_layers /= 2;
    return deck;
  };
  Run any_order(subject, half(0)), in_leaves(subject, half(subject.size(8, 2)));
  const double long_enough = subject.quick ? 0.0 : 45.0;
  for (const double begin = seconds_now(); in_leaves.seconds.empty() || seconds_now() - begin < long_enough;) {
    any_order.step();
    in_leaves.step();
  }
  std::vector<Measurement> results;
  for (Run* run : {&any_order, &in_leaves}) {
    Measurement m = report(subject, *run, Variant::routed);
    m.name = fmt::format("half of the layers, {} leaves", run->deck.reduction.leaves);
    m.seconds = median(run->seconds);
    m.more.erase("seconds_by_part");  // of the fastest step
    m.more["tokens_per_second"] = run->tokens() / m.seconds;
    m.more["leaves"] = run->deck.reduction.leaves;
    results.push_back(m);
  }
  const double cost = results[1].seconds / results[0].seconds - 1;
  results[1].more["cost_of_leaves"] = cost;
  fmt::print("sums in leaves, {}: {:+.1f}% of a step, by the medians of {} in turn\n", results[0].precision, 100 * cost,
             any_order.seconds.size());
  return results;
}

const Registration registration{{"steps", "training step", steps}};
const Registration leaves_in_fp32{
    {"leaves", "sums in leaves, fp32", [](const Subject& subject) { return leaf_steps(subject, DType::f32); }}};
const Registration leaves_in_bf16{
    {"leaves", "sums in leaves, bf16", [](const Subject& subject) { return leaf_steps(subject, DType::bf16); }}};

}  // namespace
}  // namespace flanmoe::bench
