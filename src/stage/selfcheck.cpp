#include "stage/selfcheck.hpp"

#include <unistd.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <filesystem>
#include <optional>
#include <vector>

#include "base/error.hpp"
#include "base/log.hpp"
#include "data/batch.hpp"
#include "model/freeze.hpp"
#include "parallel/together.hpp"
#include "tensor/philox.hpp"
#include "train/trainer.hpp"

namespace flanmoe {
namespace {

using detail::Layout;
using detail::Trace;
constexpr std::int64_t kSteps = detail::kSelfcheckSteps;

Deck deck_of(const Deck& deck, Layout layout) {
  Deck changed = deck;
  changed.parallel.expert = layout.expert;
  changed.run.steps = std::max(changed.run.steps, kSteps);
  changed.checkpoint.background = false;  // its copy of the state would serve nothing
  return changed;
}

bool is_right(const Deck& deck, Layout layout) {
  try {
    const Deck changed = deck_of(deck, layout);
    check_deck(changed, layout.ranks, freeze_problems(changed));
    return true;
  } catch (const UsageError&) {
    return false;
  }
}

/// Powers of two and all ranks; the expert degrees that the deck allows on each.
std::vector<Layout> layouts_of(const Deck& deck, int world_size) {
  std::vector<int> counts;
  for (int ranks = 1; ranks < world_size; ranks *= 2) counts.push_back(ranks);
  counts.push_back(world_size);
  std::vector<Layout> layouts;
  for (const int ranks : counts) {
    for (int expert = 1; expert <= (deck.moe.router == "none" ? 1 : ranks); expert *= 2) {
      if (is_right(deck, {ranks, expert})) layouts.push_back({ranks, expert});
    }
  }
  const bool own = std::any_of(layouts.begin(), layouts.end(), [&](const Layout& layout) {
    return layout.ranks == world_size && layout.expert == deck.parallel.expert;
  });
  if (!own) layouts.push_back({world_size, int(deck.parallel.expert)});
  return layouts;
}

std::uint64_t hash_of(const std::vector<std::int32_t>& ids) {
  return hash_name({reinterpret_cast<const char*>(ids.data()), ids.size() * sizeof(std::int32_t)});
}

/// The rows of a step, whoever holds them: a sum over rows of what each is and where it stands.
std::uint64_t hash_of_rows(BatchSource& source, std::int64_t step, const RankRows& rows) {
  std::uint64_t sum = 0;
  for (std::int64_t row = rows.first; row < rows.first + rows.rows; ++row) {
    const PackedBatch batch = source.read(step, row, 1);
    sum += hash_name(fmt::format("{} {} {}", row, hash_of(batch.encoder.token_T), hash_of(batch.target_T)));
  }
  return sum;
}

/// The steps of one layout, on its ranks. `checkpoint`: of the first layout, written by it when still empty.
Trace run_layout(const Deck& deck, const ProcessGrid& grid, const Communicator& group, Device& device,
                 BatchSource& source, std::string& checkpoint) {
  Communicators communicators = Communicators::make(group, grid);
  device.connect(communicators);
  const RankRows rows = RankRows::of(deck, grid);
  Trainer trainer(deck, grid, communicators, device.context());
  const auto memory = std::size_t(sysconf(_SC_PHYS_PAGES)) * std::size_t(sysconf(_SC_PAGESIZE));
  if (trainer.arena_bytes() > memory) {
    fail("{} ranks need {} MiB each, and this host has {}: check a smaller model", grid.world_size(),
         trainer.arena_bytes() >> 20, memory >> 20);
  }
  trainer.commit_memory();
  trainer.start_from_seed();
  Trace trace;
  for (std::int64_t step = 0; step < kSteps; ++step) {
    std::vector<PackedBatch> microbatches;
    for (std::int64_t row = 0; row < rows.rows; row += rows.microbatch) {
      microbatches.push_back(source.read(step, rows.first + row, rows.microbatch));
    }
    const StepRecord record = trainer.step(step, microbatches, false).record;
    trace.loss[std::size_t(step)] = record.loss;
    trace.norm[std::size_t(step)] = record.grad_norm;
  }
  trace.state = trainer.state_hash();
  trace.samples = group.all_reduce(hash_of_rows(source, kSteps, rows), ReduceOp::sum);
  if (checkpoint.empty()) {
    checkpoint = trainer.save({.step = kSteps,
                               .tokens_seen = 0,
                               .deck = print_deck(deck),
                               .tokenizer_fingerprint = source.tokenizer_fingerprint()});
  }
  trainer.go_on_from(checkpoint);
  trace.reread = trainer.state_hash();
  return trace;
}

/// Runs one layout while the other ranks wait, and tells all what it did.
Trace trace_of(const Deck& deck, Layout layout, const Communicator& world, Device& device, BatchSource& source,
               std::string& checkpoint) {
  const bool takes_part = world.rank() < layout.ranks;
  const Communicator group = world.split(takes_part ? 0 : 1, world.rank(), "selfcheck");
  Trace trace;
  const Deck changed = deck_of(deck, layout);
  if (takes_part) {
    trace =
        run_layout(changed, ProcessGrid(layout.ranks, world.rank(), layout.expert), group, device, source, checkpoint);
  }
  world.broadcast(std::span<double>(trace.loss), 0);
  world.broadcast(std::span<double>(trace.norm), 0);
  for (std::uint64_t* hash : {&trace.state, &trace.samples, &trace.reread}) {
    world.broadcast(std::span<std::uint64_t>(hash, 1), 0);
  }
  checkpoint = world.broadcast(checkpoint, 0);
  return trace;
}

}  // namespace

/// Not a number when one of them is not: std::max would drop that.
double detail::largest_difference(const Trace& a, const Trace& b) {
  double largest = 0;
  for (std::size_t i = 0; i < std::size_t(kSteps); ++i) {
    for (const double difference : {std::abs(a.loss[i] - b.loss[i]) / std::abs(b.loss[i]),
                                    std::abs(a.norm[i] - b.norm[i]) / std::abs(b.norm[i])}) {
      if (std::isnan(difference)) return difference;
      largest = std::max(largest, difference);
    }
  }
  return largest;
}

std::string detail::agreement(const Deck& deck, Layout layout, const Trace& trace, Layout first, const Trace& expected,
                              std::string& wrong) {
  const bool exact = uses_leaves(deck, layout.ranks) && uses_leaves(deck, first.ranks);
  // Sums in another order; bf16 rounds activations to 8 bits, tf32 operands of products to 11.
  const double rounding = deck.run.precision == "bf16" ? 2e-2 : deck.run.tf32() ? 2e-3 : 1e-5;
  const double difference = largest_difference(trace, expected);
  const bool same = trace.state == expected.state && trace.loss == expected.loss && trace.norm == expected.norm;
  if (!same && exact) wrong = "not the same bits";
  if (!(difference <= rounding)) wrong = fmt::format("differs by {:.1g}, more than rounding", difference);
  if (trace.samples != expected.samples) wrong = "other samples follow";
  if (trace.reread != expected.state) wrong = "the checkpoint reads differently";
  if (!wrong.empty()) return wrong;
  return same ? "the same bits" : fmt::format("the same to {:.1g}", difference);
}

bool selfcheck(const Deck& deck_in, const Communicator& world, Device& device) {
  if (deck_in.run.stage == "evaluate" || deck_in.run.stage == "plan") {
    usage_fail("selfcheck: run.stage = {} trains nothing; expected pretrain, instruct or finetune", deck_in.run.stage);
  }
  Deck deck = deck_in;
  deck.run.dir += ".selfcheck";
  const std::vector<Layout> layouts = layouts_of(deck_in, world.size());
  std::optional<BatchSource> source;
  together(world, [&] { source.emplace(deck, deck.model.vocabulary); });
  on_root(world, [&] {
    if (std::filesystem::create_directories(deck.run.dir)) return;
    usage_fail(
        "selfcheck: {} exists, and it writes there and removes it at the end; remove it or choose another run.dir",
        deck.run.dir);
  });
  log_info("{} steps on {} layouts of up to {} ranks", kSteps, layouts.size(), world.size());
  log_info("ranks  expert  loss of step {}        gradient norm         state", kSteps);
  std::string checkpoint;
  std::optional<Trace> first;
  bool right = true;
  for (const Layout layout : layouts) {
    const Trace trace = trace_of(deck, layout, world, device, *source, checkpoint);
    std::string wrong;
    if (!first) first = trace;
    const std::string text = detail::agreement(deck, layout, trace, layouts.front(), *first, wrong);
    right = right && wrong.empty();
    log_info("{:5}  {:6}  {:<20.17g}  {:<20.17g}  {:016x}  {}", layout.ranks, layout.expert, trace.loss.back(),
             trace.norm.back(), trace.state, text);
  }
  on_root(world, [&] { std::filesystem::remove_all(deck.run.dir); });
  log_info("{}", right ? "all layouts agree as the deck promises" : "NOT all layouts agree as the deck promises");
  return right;
}

}  // namespace flanmoe
