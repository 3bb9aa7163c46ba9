// The planner: machine descriptions, fits, figures by hand, and the paper's largest models on many ranks.
#include "train/plan/plan.hpp"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <numeric>

#include "data_fixture.hpp"
#include "model/freeze.hpp"
#include "train/plan/calibrate.hpp"
#include "train/trainer.hpp"

namespace flanmoe {
namespace {

using ::testing::HasSubstr;
using ::testing::Not;

std::string paper(const std::string& name) { return std::string(FLANMOE_SOURCE_DIR) + "/input/paper/" + name; }

std::string write_text_file(const TemporaryFolder& folder, const std::string& text) {
  const std::string path = folder.file("machine.json");
  write_bytes(path, {text.begin(), text.end()});
  return path;
}

TEST(Machine, ReadsBackWhatItWrites) {
  const TemporaryFolder folder;
  Machine machine = machine_of_speed(2e11, 1e10);
  machine.name = "two cores";
  machine.ranks_per_node = 2;
  machine.threads_per_rank = 3;
  machine.memory_bytes_per_node = 16.0 * (1 << 30);
  machine.program_bytes_per_rank = 5.0 * (1 << 20);
  machine.product[1] = {3e-6, 1e12, 2e10};
  machine.stream_seconds[std::size_t(Stream::gated)][1] = 7e-10;
  machine.between_nodes = {5e-6, 1e9};

  const Machine back = read_machine(write_text_file(folder, machine_text(machine)));

  EXPECT_EQ(machine_text(back), machine_text(machine));
  EXPECT_NEAR(back.product[1].call_seconds, 3e-6, 1e-12);
  EXPECT_NEAR(back.stream(Stream::gated, DType::bf16), 7e-10, 1e-16);
  EXPECT_NEAR(back.between_nodes.latency_seconds, 5e-6, 1e-12);
}

TEST(Machine, WhatIsLeftOutFollowsFromTheRest) {
  const TemporaryFolder folder;
  const Machine machine = read_machine(write_text_file(
      folder, "{\"memory_gb_per_s\": 10, /* of one rank */ \"product\": {\"fp32\": {\"gflop_per_s\": 100}}}"));

  EXPECT_EQ(machine.nodes, 1);
  EXPECT_DOUBLE_EQ(machine.product[1].flops, 1e11);
  EXPECT_DOUBLE_EQ(machine.weight_gradient[0].flops, 1e11);
  EXPECT_DOUBLE_EQ(machine.stream(Stream::adamw, DType::f32), 2.8e-9);  // 28 bytes
  EXPECT_DOUBLE_EQ(machine.between_nodes.bytes_per_second, 2.5e9);
}

TEST(Machine, GuessesAreTheSameForADescriptionAndForTheSpeedsOfARun) {
  const TemporaryFolder folder;
  Machine described = read_machine(
      write_text_file(folder, "{\"memory_gb_per_s\": 10, \"product\": {\"fp32\": {\"gflop_per_s\": 100}}}"));
  Machine of_speed = machine_of_speed(1e11, 1e10);
  described.name = of_speed.name;
  EXPECT_EQ(machine_text(described), machine_text(of_speed));
}

TEST(Machine, WrongDescriptionsAreRefusedByName) {
  const TemporaryFolder folder;
  const auto refusal = [&](const std::string& text) {
    const std::string path = write_text_file(folder, text);
    return error_of([&] { read_machine(path); });
  };
  const std::string start = "{\"memory_gb_per_s\": 10, \"product\": {\"fp32\": {\"gflop_per_s\": 100}}";

  EXPECT_THAT(refusal("{"), HasSubstr("machine.json: expected JSON"));
  EXPECT_THAT(refusal("[]"), HasSubstr("expected a JSON object"));
  EXPECT_THAT(refusal("{\"memory_gb_per_s\": 10}"), HasSubstr("expected product.fp32.gflop_per_s, found none"));
  EXPECT_THAT(refusal(start + ", \"in_node\": {\"latency\": 3}}"), HasSubstr("in_node.latency is not known"));
  for (const char* wrong : {"0", "\"two\"", "0.5", "2.5", "-1", "2000000"}) {
    for (const char* key : {"nodes", "ranks_per_node", "threads_per_rank"}) {
      EXPECT_THAT(refusal(fmt::format("{}, \"{}\": {}}}", start, key, wrong)),
                  HasSubstr(fmt::format("{}: expected a whole number from 1 to 1000000, found {}", key, wrong)));
    }
  }
  const std::string unknown = refusal(start + ", \"speed\": 3}");
  const std::string key = "product.fp32.gflop_per_s";
  ASSERT_THAT(unknown, HasSubstr(key));
  EXPECT_EQ(unknown.find(key), unknown.rfind(key)) << "known keys are listed once";
  EXPECT_EQ(refusal(start + ", \"in_node\": {\"latency_us\": 0}}"), "");
}

TEST(Fit, FindsTheCoefficientsAndNoneBelowZero) {
  const std::vector<std::vector<double>> rows = {{1, 1e9, 1e6}, {1, 4e9, 3e6}, {1, 1e10, 1e6}, {1, 2e8, 9e6}};
  std::vector<double> times;
  for (const auto& row : rows) times.push_back(2e-6 * row[0] + 1e-11 * row[1] + 3e-10 * row[2]);
  const std::vector<double> fitted = fit_times(rows, times);
  EXPECT_NEAR(fitted[0], 2e-6, 1e-9);
  EXPECT_NEAR(fitted[1], 1e-11, 1e-15);
  EXPECT_NEAR(fitted[2], 3e-10, 1e-14);

  // Time falls with the second column: it has no part in the best fit that is allowed.
  const std::vector<double> falling = fit_times({{1, 0}, {1, 1}, {1, 2}}, {3, 2, 1});
  EXPECT_EQ(falling[1], 0.0);
  EXPECT_GT(falling[0], 1.0);
}

Deck small_deck() {
  Deck deck;
  deck.batch.rows = 4;
  deck.batch.input_length = 8;
  deck.batch.target_length = 4;
  deck.moe.router = "top_k";
  deck.moe.experts = 4;
  return deck;
}

TEST(EvenCopies, ByHand) {
  Deck deck = small_deck();
  deck.moe.capacity_factor = 0;
  EXPECT_EQ(even_copies(deck, true, 0, 2), (std::vector<std::int64_t>{4, 4, 4, 4}));
  deck.batch.input_length = 6;  // row 0: experts 0 1 2 3 0 1; row 1: 1 2 3 0 1 2
  EXPECT_EQ(even_copies(deck, true, 0, 1), (std::vector<std::int64_t>{2, 2, 1, 1}));
  EXPECT_EQ(even_copies(deck, true, 1, 1), (std::vector<std::int64_t>{1, 2, 2, 1}));
  EXPECT_EQ(even_copies(deck, true, 0, 2), (std::vector<std::int64_t>{3, 4, 3, 2}));
  deck.moe.capacity_factor = 1;  // 1.5 slots, rounded half to even: 2 a row and expert
  deck.moe.min_capacity = 1;
  deck.moe.top_k = 2;  // 3 claims each
  EXPECT_EQ(even_copies(deck, true, 0, 1), (std::vector<std::int64_t>{2, 2, 2, 2}));
  deck.moe.router = "expert_choice";
  EXPECT_EQ(even_copies(deck, true, 0, 2), (std::vector<std::int64_t>{4, 4, 4, 4}));
}

TEST(Plan, GradientsAndWeightsByHand) {
  Deck deck = small_deck();
  deck.moe.router = "none";
  deck.run.precision = "bf16";
  std::int64_t parameters = 0, whole = 0;
  for (const ParameterSpec& spec : training_parameters(deck)) {
    parameters += spec.global_size();
    if (spec.full_precision) whole += spec.global_size();
  }
  const LayoutPlan plan = plan_layout(deck, 2, 1, nullptr);

  const auto bytes = [&](const std::string& name) {
    for (const ArenaSize& arena : plan.arenas) {
      if (arena.name == name) return double(arena.bytes);
    }
    return 0.0;
  };
  EXPECT_NEAR(bytes("gradients"), 4.0 * double(parameters), 128);
  EXPECT_NEAR(bytes("weights"), 2.0 * double(parameters) + 2.0 * double(whole), 64 * 200);
  // Both ranks together hand over the other's segment, and then their own.
  std::uint64_t summed = 0, gathered = 0;
  for (const int rank : {0, 1}) {
    const ProcessGrid grid(2, rank, 1);
    const ParameterStore store(training_parameters(deck), grid.coordinates(), DType::bf16);
    const Traffic traffic = plan_traffic(deck, grid, store).total();
    summed += traffic[CollectiveKind::reduce_scatter_tree].bytes;
    gathered += traffic[CollectiveKind::all_gather_segments].bytes;
  }
  EXPECT_EQ(summed, std::uint64_t(4 * parameters));
  EXPECT_EQ(gathered, std::uint64_t(4 * parameters));
}

TEST(Plan, TimeIsTheSumOfWorkOverRates) {
  Deck deck = small_deck();
  deck.moe.router = "none";
  Machine machine = machine_of_speed(1e9, 1e30);  // nothing but arithmetic costs
  machine.attention[0] = {1e9, 0};
  machine.in_node = machine.between_nodes = {0, 1e30};
  const ProcessGrid grid(1, 0, 1);
  const ParameterStore store(training_parameters(deck), grid.coordinates(), DType::f32);
  const WorkCounts work = full_work(deck, grid);
  const StepTime time = predict_time(deck, grid, store, machine, work, plan_traffic(deck, grid, store));

  // Attention computes its scores twice: 14 operations where the count of useful ones has 12.
  TrainingFlops flops = training_flops(deck.model, deck.moe, work);
  EXPECT_NEAR(time.total(), (flops.total() + flops.attention / 6) / 1e9, 1e-6 * time.total());
  EXPECT_NEAR(time[Part::logits], flops.logits / 1e9, 1e-6 * time.total());
  EXPECT_EQ(time[Part::communication], 0.0);
}

TEST(Plan, SlowerLinksAndMoreWorkTakeLonger) {
  Deck deck = small_deck();
  deck.batch.rows = 16;
  Machine machine = machine_of_speed(1e11, 1e10);
  machine.nodes = 2;
  machine.ranks_per_node = 2;
  const double once = plan_layout(deck, 4, 4, &machine).time.total();
  machine.between_nodes.bytes_per_second /= 10;
  EXPECT_GT(plan_layout(deck, 4, 4, &machine).time.total(), once);
  const double on_slow_links = plan_layout(deck, 2, 2, &machine).time[Part::communication];
  machine.between_nodes.bytes_per_second *= 10;
  EXPECT_EQ(plan_layout(deck, 2, 2, &machine).time[Part::communication], on_slow_links) << "two ranks are on one node";
  deck.batch.input_length *= 2;
  EXPECT_GT(plan_layout(deck, 4, 4, &machine).time.total(), once);
}

TEST(Plan, LargestModelsOfThePaperOnManyRanks) {
  const TemporaryFolder folder;
  Machine machine = machine_of_speed(1e14, 1e12);
  machine.nodes = 2048;
  machine.ranks_per_node = 8;
  machine.memory_bytes_per_node = 8.0 * 80 * (1 << 30);
  const std::string path = write_text_file(folder, machine_text(machine));
  for (const char* name : {"st_moe_32b.ini", "token_choice_xxl.ini", "t5_1_1_xxl.ini"}) {
    for (const int expert : {1, 64}) {
      Deck deck = parse_deck(paper(name), {"--run.stage=plan", "--plan.machine=" + path, "--batch.rows=16384",
                                           "--batch.microbatch_rows=0", "--moe.group_rows=1"});
      if (expert > 1 && deck.moe.router == "none") continue;
      deck.parallel.expert = expert;
      const std::string report = plan_report(deck);
      EXPECT_THAT(report, HasSubstr(fmt::format("16384 ranks = {} data x {} expert", 16384 / expert, expert))) << name;
      EXPECT_THAT(report, HasSubstr("memory of the fullest rank")) << name;
      EXPECT_THAT(report, HasSubstr("tokens/s")) << name;
      EXPECT_EQ(report.find("nan"), std::string::npos) << report;
      EXPECT_EQ(report.find("warning"), std::string::npos) << report;
    }
  }
}

TEST(Plan, OptimizerStateOfTheLargestModelsShrinksWithTheRanks) {
  for (const auto& [name, expert] : {std::pair{"st_moe_32b.ini", 64}, {"t5_1_1_xxl.ini", 1}}) {
    Deck deck = parse_deck(paper(name), {"--batch.rows=16384", "--batch.microbatch_rows=1", "--moe.group_rows=1"});
    deck.parallel.expert = expert;
    std::int64_t largest = 0;  // elements of a block or of a matrix that stays whole
    for (const ParameterSpec& spec : training_parameters(deck)) {
      largest = std::max(largest, (spec.block_rows > 0 ? spec.block_rows : spec.rows) * spec.cols);
    }
    for (const int ranks : {512, 16384}) {
      std::int64_t share = 0;  // elements
      const ParameterStore store(training_parameters(deck), ProcessGrid(ranks, 0, expert).coordinates(), DType::bf16);
      for (const Placement placement : {Placement::dense, Placement::expert}) {
        const auto& sizes = store.owned_sizes(placement);
        share += std::accumulate(sizes.begin(), sizes.end(), std::int64_t{0}) / store.replica_size(placement);
        EXPECT_LE(*std::max_element(sizes.begin(), sizes.end()), share + largest);
      }
      const LayoutPlan plan = plan_layout(deck, ranks, expert, nullptr);
      const auto state = std::find_if(plan.arenas.begin(), plan.arenas.end(),
                                      [](const ArenaSize& arena) { return arena.name == "optimizer state"; });
      ASSERT_NE(state, plan.arenas.end());
      // fp32 masters and their factors; messages of the sum of gradients; sums of the blocks of one matrix at home.
      EXPECT_LE(double(state->bytes), 4.04 * double(share + 2 * largest) + (40 << 20)) << name << " on " << ranks;
    }
  }
}

TEST(Plan, SaysWhatItAssumesOfThreadsAndNodes) {
  const TemporaryFolder folder;
  Machine machine = machine_of_speed(1e11, 1e10);
  machine.nodes = 2;
  machine.threads_per_rank = 3;
  Deck deck = small_deck();
  deck.run.stage = "plan";
  deck.plan.ranks = 2;
  EXPECT_THAT(plan_report(deck), HasSubstr("2 rows of the batch each, 2 at a time, 1 threads each\n"));
  deck.plan.machine = write_text_file(folder, machine_text(machine));
  EXPECT_THAT(plan_report(deck), HasSubstr("3 threads each; machine"));
  EXPECT_THAT(plan_report(deck), Not(HasSubstr("warning")));
  deck.run.threads = 5;
  EXPECT_THAT(plan_report(deck), HasSubstr("5 threads each; machine"));
  deck.plan.ranks = 4;
  EXPECT_THAT(plan_report(deck), HasSubstr("warning: 4 ranks are more than the 2 of this machine"));
}

TEST(Plan, MoreRanksThanCanBePlannedForAreRefused) {
  const TemporaryFolder folder;
  Machine machine = machine_of_speed(1e11, 1e10);
  machine.nodes = 1'000'000;
  machine.ranks_per_node = 1000;
  Deck deck = small_deck();
  deck.plan.machine = write_text_file(folder, machine_text(machine));
  EXPECT_THAT(error_of([&] { plan_report(deck); }), HasSubstr("make 1000000000 ranks, expected at most 1048576"));
  EXPECT_THAT(error_of([] { parse_deck(paper("st_moe_32b.ini"), {"--plan.ranks=4294967297"}); }),
              HasSubstr("plan.ranks"));
}

}  // namespace
}  // namespace flanmoe
