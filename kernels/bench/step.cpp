// A whole training step of a T5-base-sized model, with sums in any order and in leaves: forward, backward, optimizer;
// tokens per second, share of the roof and where the time goes.
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

/// A model in training, and the fastest of its steps so far.
struct Run {
  Run(const Subject& subject, DType compute, Variant variant, std::int64_t leaves, const ProcessGrid& grid,
      const Communicators& communicators)
      : deck(base_deck(subject, compute, variant, leaves)),
        trainer(deck, grid, communicators, subject.context),
        batch{full_batch(deck)} {
    trainer.commit_memory();
    trainer.start_from_seed();
    outcome = trainer.step(steps++, batch, false);  // primitives are made, memory is touched
  }
  void step() {
    const auto before = part_seconds();
    const double start = seconds_now();
    outcome = trainer.step(steps++, batch, false);
    const double seconds = seconds_now() - start;
    if (seconds >= best) return;
    best = seconds;
    for (std::size_t i = 0; i < parts.size(); ++i) parts[i] = part_seconds()[i] - before[i];
  }

  Deck deck;
  Trainer trainer;
  std::vector<PackedBatch> batch;
  std::int64_t steps = 0;
  Trainer::StepOutcome outcome;
  double best = 1e30;
  std::array<double, std::size_t(Part::count)> parts{};
};

Measurement report(const Subject& subject, const Run& run, Variant variant) {
  Measurement m;
  const BatchDeck& batch = run.deck.batch;
  const double tokens = double(batch.rows * (batch.input_length + batch.target_length)) / run.best;
  const std::int64_t leaves = run.deck.reduction.leaves;
  m.name = name_of(variant);
  if (leaves > 0) m.name += fmt::format(", sums in {} leaves", leaves);
  m.precision = run.deck.run.precision;
  m.shape = fmt::format("{}, {} rows of {}+{} tokens", subject.quick ? "tiny" : "T5-base", batch.rows,
                        batch.input_length, batch.target_length);
  m.seconds = run.best;
  m.flops = training_flops(run.deck.model, run.deck.moe, run.outcome.work).total();
  m.more["tokens_per_second"] = tokens;
  m.more["forced_balance"] = run.deck.moe.forced_balance;
  m.more["leaves"] = leaves;
  std::string text;
  for (int i = 0; i < int(Part::count); ++i) {
    const double seconds = run.parts[std::size_t(i)];
    m.more["seconds_by_part"][name_of(Part(i))] = seconds;
    if (seconds >= 0.005 * run.best) text += fmt::format("  {} {:.2f} s", name_of(Part(i)), seconds);
  }
  fmt::print("{:.0f} tokens/s, {} {}; best of {} steps:{}\n", tokens, m.precision, m.name, run.steps - 1, text);
  return m;
}

/// With sums in any order and, on the host, with sums in leaves; one after the other, for two such models are more than
/// many a machine holds.
void measure(const Subject& subject, DType compute, Variant variant, std::vector<Measurement>& results) {
  const Communicator world = Communicator::world();
  const ProcessGrid grid{1, 0, 1};
  const Communicators communicators = Communicators::make(world, grid);
  const std::int64_t least = subject.quick ? 2 : 3;
  const double long_enough = subject.quick ? 0.0 : 5.0;
  for (const std::int64_t leaves : {0, 8}) {
    if (leaves > 0 && (subject.quick || !subject.on_host())) continue;
    Run run(subject, compute, variant, leaves, grid, communicators);
    for (const double begin = seconds_now(); run.steps < least || seconds_now() - begin < long_enough;) run.step();
    results.push_back(report(subject, run, variant));
  }
}

/// Real routing is never shown without the routing that no training can have, nor the other way round.
std::vector<Measurement> steps(const Subject& subject) {
  std::vector<Measurement> results;
  for (const DType compute : {DType::f32, DType::bf16}) {
    for (const Variant variant : {Variant::routed, Variant::balanced, Variant::dense}) {
      measure(subject, compute, variant, results);
    }
  }
  return results;
}

const Registration registration{{"steps", "training step", steps}};

}  // namespace
}  // namespace flanmoe::bench
