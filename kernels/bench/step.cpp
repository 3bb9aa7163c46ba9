// A whole training step of a T5-base-sized model: forward, backward, optimizer; tokens per second, share of the roof
// and where the time goes.
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

Deck base_deck(const Subject& subject, DType compute, Variant variant) {
  Deck deck;
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

Measurement measure(const Subject& subject, DType compute, Variant variant) {
  const Deck deck = base_deck(subject, compute, variant);
  const Communicator world = Communicator::world();
  const ProcessGrid grid{1, 0, 1};
  const Communicators communicators = Communicators::make(world, grid);
  Trainer trainer(deck, grid, communicators, subject.context);
  trainer.commit_memory();
  trainer.start_from_seed();
  const std::vector<PackedBatch> batch{full_batch(deck)};
  std::int64_t step = 0;
  Trainer::StepOutcome outcome = trainer.step(step++, batch, false);  // primitives are made, memory is touched
  reset_part_seconds();
  double best = 1e30;
  int runs = 0;
  const double long_enough = subject.quick ? 0.0 : 5.0;
  const int least = subject.quick ? 1 : 2;
  for (const double begin = seconds_now(); runs < least || seconds_now() - begin < long_enough; ++runs) {
    const double start = seconds_now();
    outcome = trainer.step(step++, batch, false);
    best = std::min(best, seconds_now() - start);
  }
  Measurement m;
  m.name = name_of(variant);
  m.precision = compute == DType::bf16 ? "bf16" : "fp32";
  m.shape = fmt::format("{}, {} rows of {}+{} tokens", subject.quick ? "tiny" : "T5-base", deck.batch.rows,
                        deck.batch.input_length, deck.batch.target_length);
  m.seconds = best;
  m.flops = training_flops(deck.model, deck.moe, outcome.work).total();
  const double rate = double(deck.batch.rows * (deck.batch.input_length + deck.batch.target_length)) / best;
  m.more["tokens_per_second"] = rate;
  m.more["forced_balance"] = deck.moe.forced_balance;
  const auto seconds = part_seconds();
  std::string text;
  for (int i = 0; i < int(Part::count); ++i) {
    m.more["seconds_by_part"][name_of(Part(i))] = seconds[std::size_t(i)] / runs;
    if (seconds[std::size_t(i)] / runs < 0.005 * best) continue;
    text += fmt::format("  {} {:.2f} s", name_of(Part(i)), seconds[std::size_t(i)] / runs);
  }
  fmt::print("{:.0f} tokens/s, {} {}; mean of {} steps:{}\n", rate, m.precision, name_of(variant), runs, text);
  return m;
}

/// Real routing is never shown without the routing that no training can have, nor the other way round.
std::vector<Measurement> steps(const Subject& subject) {
  std::vector<Measurement> results;
  for (const DType compute : {DType::f32, DType::bf16}) {
    for (const Variant variant : {Variant::routed, Variant::balanced, Variant::dense}) {
      results.push_back(measure(subject, compute, variant));
    }
  }
  return results;
}

const Registration registration{{"steps", "training step", steps}};

}  // namespace
}  // namespace flanmoe::bench
