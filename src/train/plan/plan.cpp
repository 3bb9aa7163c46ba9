#include "train/plan/plan.hpp"

#include <omp.h>

#include <algorithm>
#include <numeric>
#include <optional>
#include <set>
#include <vector>

#include "model/freeze.hpp"
#include "train/model_size.hpp"
#include "train/resources.hpp"
#include "train/trainer.hpp"

namespace flanmoe {
namespace {

/// fp32 elements as large as what Adafactor keeps of every rank's units besides masters: factors, and the sums that the
/// homes of matrices with several owners receive, of one bucket at a time (optimizer/README.md).
void add_sums_of_adafactor(const ParameterStore& store, Placement placement, std::vector<std::int64_t>& elements) {
  std::vector<std::int64_t> most(elements.size(), 0);
  const ParameterUnit* home = nullptr;
  for (const ParameterUnit& unit : store.units(placement)) {
    const ParameterSpec& spec = store.specs()[std::size_t(unit.parameter)];
    if (unit.first_row == 0) home = &unit;
    elements[std::size_t(unit.owner)] += unit.rows + spec.cols;
    if (unit.rows == spec.rows || unit.first_row == 0) continue;
    std::int64_t& at_home = most[std::size_t(home->owner)];
    at_home = std::max(at_home, 2 * (spec.blocks() + 1) * (spec.cols + 2));  // fp64; one row of totals
  }
  for (std::size_t rank = 0; rank < elements.size(); ++rank) elements[rank] += most[rank];
}

/// Ranks of which one is the fullest: of few, any; of many, those that own the most elements of gradients or, with what
/// is frozen and sums, of all, and the first and the last.
std::set<int> candidates(const ParameterStore& store, bool adafactor, int ranks, int expert) {
  constexpr int few = 8;
  std::set<int> all;
  for (int rank = 0; rank < std::min(ranks, few); ++rank) all.insert(rank);
  if (ranks <= few) return all;
  all.insert(ranks - 1);
  std::vector<std::int64_t> owned(std::size_t(ranks), 0);
  for (const Placement placement : {Placement::dense, Placement::expert}) {
    const int step = placement == Placement::dense ? 1 : expert;  // from one owner to the next
    std::vector<std::int64_t> sizes = store.owned_sizes(placement);
    all.insert(int(std::max_element(sizes.begin(), sizes.end()) - sizes.begin()) * step);
    for (const ParameterUnit& unit : store.frozen_units(placement)) {
      sizes[std::size_t(unit.owner)] += unit.rows * store.specs()[std::size_t(unit.parameter)].cols;
    }
    if (adafactor) add_sums_of_adafactor(store, placement, sizes);
    for (int rank = 0; rank < ranks; ++rank) owned[std::size_t(rank)] += sizes[std::size_t(rank / step)];
  }
  all.insert(int(std::max_element(owned.begin(), owned.end()) - owned.begin()));
  return all;
}

double to_gib(double bytes) { return bytes / (1024.0 * 1024 * 1024); }

std::string bytes_text(double bytes) {
  for (const auto& [unit, name] : {std::pair{1e12, "TB"}, {1e9, "GB"}, {1e6, "MB"}, {1e3, "kB"}}) {
    if (bytes >= unit) return fmt::format("{:.3g} {}", bytes / unit, name);
  }
  return fmt::format("{} B", bytes);
}

std::string seconds_text(double seconds) {
  return seconds >= 1 ? fmt::format("{:.3g} s", seconds) : fmt::format("{:.3g} ms", seconds * 1e3);
}

double program_bytes(const Machine* machine) {
  return machine != nullptr && machine->program_bytes_per_rank > 0 ? machine->program_bytes_per_rank
                                                                   : double(resident_bytes());
}

std::string memory_text(const LayoutPlan& plan, const Machine* machine) {
  std::string text = fmt::format("memory of the fullest rank ({}):\n", plan.rank);
  for (const ArenaSize& arena : plan.arenas) {
    text += fmt::format("  {:<22} {:>12.1f} MiB\n", arena.name, to_mib(arena.bytes));
  }
  const double program = program_bytes(machine);
  const double total = double(plan.arena_bytes()) + program;
  text += fmt::format("  {:<22} {:>12.1f} MiB\n  {:<22} {:>12.1f} MiB", "program", to_mib(std::size_t(program)), "all",
                      to_mib(std::size_t(total)));
  if (machine != nullptr && machine->memory_bytes_per_node > 0) {
    const double share = machine->memory_bytes_per_node / double(machine->ranks_per_node);
    text += fmt::format(" of {:.1f}{}", to_mib(std::size_t(share)), total > share ? ": does not fit" : "");
  }
  return text + "\n";
}

std::string traffic_text(const LayoutPlan& plan) {
  std::string text =
      fmt::format("collectives of a step, what rank {} hands to others (full rows, even routing):\n", plan.rank);
  text += fmt::format("  {:<20} {:<12} {:>8} {:>12} {:>16}\n", "collective", "among", "calls", "messages", "bytes");
  bool any = false;
  for (const auto& [name, traffic] :
       {std::pair{"world", plan.traffic.world}, {"data", plan.traffic.data}, {"expert", plan.traffic.expert}}) {
    for (std::size_t i = 0; i < traffic.kinds.size(); ++i) {
      const CollectiveCount& count = traffic.kinds[i];
      if (count.calls == 0) continue;
      any = true;
      text += fmt::format("  {:<20} {:<12} {:>8} {:>12} {:>16}\n", name_of(CollectiveKind(i)), name, count.calls,
                          count.messages, count.bytes);
    }
  }
  return any ? text : "collectives of a step: none on one rank\n";
}

double tokens_of_step(const LayoutPlan& plan) {
  return (plan.work.encoder_tokens + plan.work.decoder_tokens) * plan.ranks;
}

std::string time_text(const Deck& deck, const LayoutPlan& plan) {
  std::string text = "predicted time of a step of full rows:\n";
  for (std::size_t i = 0; i < plan.time.seconds.size(); ++i) {
    if (plan.time.seconds[i] <= 0) continue;
    text += fmt::format("  {:<14} {:>10} {:>5.1f}%\n", name_of(Part(i)), seconds_text(plan.time.seconds[i]),
                        100 * plan.time.seconds[i] / plan.time.total());
  }
  const double flops = training_flops(deck.model, deck.moe, plan.work).total() * plan.ranks;
  return text + fmt::format("  {:<14} {:>10}, {:.4g} tokens/s, {:.4g} GFLOP/s on all ranks\n", "all",
                            seconds_text(plan.time.total()), tokens_of_step(plan) / plan.time.total(),
                            flops / plan.time.total() / 1e9);
}

/// All ways to split the ranks into data x expert.
std::string splits_text(const Deck& deck, int ranks, const Machine* machine) {
  std::string text = "splits of the ranks:\n";
  text += fmt::format("  {:>8} {:>8} {:>14} {:>16} {:>12}\n", "data", "expert", "GiB per rank", "bytes per step",
                      machine != nullptr ? "step" : "");
  const double room = machine != nullptr && machine->memory_bytes_per_node > 0
                          ? machine->memory_bytes_per_node / double(machine->ranks_per_node)
                          : 0;
  std::optional<LayoutPlan> best;
  for (int expert = 1; expert <= std::min<std::int64_t>(ranks, deck.moe.experts); ++expert) {
    if (ranks % expert != 0 || deck.moe.experts % expert != 0) continue;
    const LayoutPlan plan = plan_layout(deck, ranks, expert, machine);
    const double bytes = double(plan.arena_bytes()) + program_bytes(machine);
    const bool fits = room == 0 || bytes <= room;
    text += fmt::format("  {:>8} {:>8} {:>14.2f} {:>16} {:>12}{}\n", ranks / expert, expert, to_gib(bytes),
                        bytes_text(double(plan.traffic.total().total().bytes)),
                        machine != nullptr ? seconds_text(plan.time.total()) : "", fits ? "" : "  does not fit");
    if (machine != nullptr && fits && (!best || plan.time.total() < best->time.total())) best = plan;
  }
  if (best) {
    text += fmt::format("best split: {} data x {} expert (parallel.expert = {})\n", ranks / best->expert, best->expert,
                        best->expert);
  } else if (machine != nullptr) {
    text += "no split fits the memory of a node\n";
  }
  return text;
}

std::int64_t ranks_of(const Machine& machine) { return machine.nodes * machine.ranks_per_node; }

int planned_ranks(const Deck& deck, const Machine* machine) {
  constexpr std::int64_t kMost = 1 << 20;  // as of plan.ranks
  const std::int64_t ranks = deck.plan.ranks > 0 ? deck.plan.ranks : machine != nullptr ? ranks_of(*machine) : 1;
  if (ranks > kMost) {
    usage_fail("{}: nodes and ranks_per_node make {} ranks, expected at most {}; plan.ranks plans for fewer",
               deck.plan.machine, ranks, kMost);
  }
  return int(ranks);
}

/// Threads of a rank: their scratch memory counts.
std::int64_t planned_threads(const Deck& deck, const Machine* machine) {
  if (deck.run.threads > 0) return deck.run.threads;
  return machine != nullptr ? machine->threads_per_rank : 1;
}

}  // namespace

std::size_t LayoutPlan::arena_bytes() const {
  return std::accumulate(arenas.begin(), arenas.end(), std::size_t{0},
                         [](std::size_t sum, const ArenaSize& arena) { return sum + arena.bytes; });
}

LayoutPlan plan_layout(const Deck& deck_in, int ranks, int expert, const Machine* machine) {
  Deck deck = deck_in;
  deck.parallel.expert = expert;
  const ParameterStore parameters(training_parameters(deck), ProcessGrid(ranks, 0, expert).coordinates(),
                                  compute_type(deck.run));
  LayoutPlan plan;
  plan.ranks = ranks;
  plan.expert = expert;
  for (const int rank : candidates(parameters, deck.optimizer.name == "adafactor", ranks, expert)) {
    const ProcessGrid grid(ranks, rank, expert);
    const Communicators communicators = Communicators::imagined(grid);
    const Trainer trainer(deck, grid, communicators);  // measures its arenas and takes nothing
    if (!plan.arenas.empty() && trainer.arena_bytes() <= plan.arena_bytes()) continue;
    plan.rank = rank;
    plan.arenas.clear();
    for (const Arena* arena : trainer.arenas()) plan.arenas.push_back({arena->name(), arena->measured()});
    plan.traffic = plan_traffic(deck, grid, trainer.store());
    plan.work = full_work(deck, grid);
    if (machine != nullptr) {
      plan.time = predict_time(deck, grid, trainer.store(), *machine, plan.work, plan.traffic);
    }
  }
  return plan;
}

std::string plan_report(const Deck& deck) {
  std::optional<Machine> machine;
  if (!deck.plan.machine.empty()) machine = read_machine(deck.plan.machine);
  const Machine* given = machine ? &*machine : nullptr;
  const int ranks = planned_ranks(deck, given);
  check_deck(deck, ranks, freeze_problems(deck));
  const std::int64_t threads = planned_threads(deck, given);
  omp_set_num_threads(int(threads));
  const auto expert = int(deck.parallel.expert);
  const LayoutPlan plan = plan_layout(deck, ranks, expert, given);

  std::string text = describe_size(deck);
  text +=
      fmt::format("layout: {} ranks = {} data x {} expert, {} rows of the batch each, {} at a time, {} threads each",
                  ranks, ranks / expert, expert, RankRows::of(deck, ProcessGrid(ranks, 0, expert)).rows,
                  RankRows::of(deck, ProcessGrid(ranks, 0, expert)).microbatch, threads);
  text += machine ? fmt::format("; machine: {}, {} ranks per node\n", machine->name, machine->ranks_per_node) : "\n";
  if (machine && ranks > ranks_of(*machine)) {
    text += fmt::format("warning: {} ranks are more than the {} of this machine; planned with more nodes of its kind\n",
                        ranks, ranks_of(*machine));
  }
  const WorkCounts row = full_row(deck);
  text += fmt::format("training GFLOP per token: {:.4g}\n", training_flops(deck.model, deck.moe, row).total() /
                                                                (row.encoder_tokens + row.decoder_tokens) / 1e9);
  text += memory_text(plan, given) + traffic_text(plan);
  if (given != nullptr) {
    text += time_text(deck, plan);
  } else {
    text += "no time is predicted: name a machine in plan.machine; flanmoe calibrate FILE measures one\n";
  }
  if (deck.moe.router != "none" && ranks > 1) text += splits_text(deck, ranks, given);
  return text;
}

}  // namespace flanmoe
