// A whole training step of a T5-base-sized model: forward, backward, optimizer; tokens per second, share of the roof
// and where the time goes.
#include <random>

#include "base/timer.hpp"
#include "kernels/bench/bench.hpp"
#include "train/trainer.hpp"

namespace flanmoe::bench {
namespace {

constexpr std::int64_t kRows = 8;
constexpr std::int64_t kInput = 398;  // with 114 target tokens: 512 a row, 4,096 a step
constexpr std::int64_t kTarget = 114;

Deck base_deck(DType compute, bool sparse) {
  Deck deck;
  deck.run.device = "cpu";
  deck.run.precision = compute == DType::bf16 ? "bf16" : "fp32";
  deck.batch = {.rows = kRows, .microbatch_rows = kRows, .input_length = kInput, .target_length = kTarget};
  deck.model.vocabulary = 32128;
  deck.model.width = 768;
  deck.model.hidden = 2048;
  deck.model.heads = 12;
  deck.model.head_width = 64;
  deck.model.encoder_layers = deck.model.decoder_layers = 12;
  deck.moe.router = sparse ? "top_k" : "none";
  deck.moe.experts = 8;
  return deck;
}

/// Rows of one full segment each, with random tokens.
PackedBatch full_batch(const Deck& deck) {
  std::mt19937 random(1);
  PackedBatch batch;
  batch.rows = batch.step_rows = kRows;
  const auto fill = [&](RaggedSide& side, std::int64_t length) {
    side.row_first.assign(1, 0);
    for (std::int64_t r = 0; r < kRows; ++r) {
      side.segment_begin_S.push_back(std::int32_t(r * length));
      side.segment_count_S.push_back(std::int32_t(length));
      for (std::int64_t i = 0; i < length; ++i) {
        side.token_T.push_back(std::int32_t(3 + random() % std::uint64_t(deck.model.vocabulary - 3)));
      }
      side.row_first.push_back(side.tokens());
    }
  };
  fill(batch.encoder, kInput);
  fill(batch.decoder, kTarget);
  batch.target_T = batch.decoder.token_T;
  batch.segment_row_S.resize(kRows);
  batch.segment_task_S.resize(kRows);
  batch.step_encoder_tokens = batch.encoder.tokens();
  batch.step_target_tokens = batch.decoder.tokens();
  return batch;
}

Measurement measure(DType compute, bool sparse) {
  const Deck deck = base_deck(compute, sparse);
  const Communicator world = Communicator::world();
  const ProcessGrid grid{1, 0, 1};
  const Communicators communicators = Communicators::make(world, grid);
  Trainer trainer(deck, grid, communicators);
  trainer.commit_memory();
  trainer.start_from_seed();
  const std::vector<PackedBatch> batch{full_batch(deck)};
  std::int64_t step = 0;
  Trainer::StepOutcome outcome = trainer.step(step++, batch, false);  // primitives are made, memory is touched
  reset_part_seconds();
  double best = 1e30;
  int runs = 0;
  for (const double begin = seconds_now(); runs < 2 || seconds_now() - begin < 5.0; ++runs) {
    const double start = seconds_now();
    outcome = trainer.step(step++, batch, false);
    best = std::min(best, seconds_now() - start);
  }
  Measurement m;
  m.name = sparse ? "training step, MoE, 8 experts, top-1" : "training step, dense twin";
  m.precision = compute == DType::bf16 ? "bf16" : "fp32";
  m.shape = "T5-base, 8 rows of 398+114 tokens";
  m.seconds = best;
  m.flops = training_flops(deck.model, deck.moe, outcome.work).total();
  m.more["tokens_per_second"] = double(kRows * (kInput + kTarget)) / best;
  const auto seconds = part_seconds();
  std::string text;
  for (int i = 0; i < int(Part::count); ++i) {
    m.more["seconds_by_part"][name_of(Part(i))] = seconds[std::size_t(i)] / runs;
    if (seconds[std::size_t(i)] / runs < 0.005 * best) continue;
    text += fmt::format("  {} {:.2f} s", name_of(Part(i)), seconds[std::size_t(i)] / runs);
  }
  fmt::print("{:.0f} tokens/s, {} {}; mean of {} steps:{}\n", double(kRows * (kInput + kTarget)) / best, m.precision,
             sparse ? "MoE" : "dense", runs, text);
  return m;
}

std::vector<Measurement> steps(const Kernels& /*cpu*/) {
  std::vector<Measurement> results;
  for (const DType compute : {DType::f32, DType::bf16}) {
    for (const bool sparse : {true, false}) results.push_back(measure(compute, sparse));
  }
  return results;
}

const Registration registration{{"steps", "training step", steps}};

}  // namespace
}  // namespace flanmoe::bench
