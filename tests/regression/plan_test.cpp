// Plans held against runs: memory of five decks, traffic, the watched run, a study of layouts.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <fstream>

#include "base/hdf5.hpp"
#include "regression/program.hpp"
#include "train/plan/machine.hpp"
#include "train/run_folder.hpp"

namespace flanmoe::regression {
namespace {

using ::testing::HasSubstr;
using ::testing::Not;

class PlanOfARun : public testing::Test {
 protected:
  static void SetUpTestSuite() { silence_hdf5(); }

  /// A description whose only measured figure is the memory of the program, taken from a run of the smoke deck.
  std::string machine_from(const std::string& run_dir) const {
    std::ifstream log(run_dir + "/log");
    const std::string text{std::istreambuf_iterator<char>(log), {}};
    const std::size_t at = text.find("program ");
    EXPECT_NE(at, std::string::npos) << text;
    const std::string mib = text.substr(at + 8, text.find(' ', at + 8) - at - 8);
    const std::string path = workplace_.path("machine.json");
    std::ofstream(path)
        << "{\"memory_gb_per_s\": 10, \"product\": {\"fp32\": {\"gflop_per_s\": 50}}, \"program_mib_per_rank\": " << mib
        << "}\n";
    return path;
  }
  /// flanmoe-scaling with the smoke deck.
  Ended scaling(const std::string& dir, const std::string& options) const {
    const std::string command = std::string(FLANMOE_SCALING) + " " + FLANMOE_SMOKE_DECK + " --output " + dir +
                                " --launcher '" + FLANMOE_LAUNCHER + " -n {ranks}' " + options + " > " +
                                workplace_.path("out") + " 2>&1";
    const int status = std::system(command.c_str());
    std::ifstream in(workplace_.path("out"));
    return Ended{WIFEXITED(status) ? WEXITSTATUS(status) : -1, {std::istreambuf_iterator<char>(in), {}}};
  }
  Workplace workplace_;
};

double mib_of_plan(const std::string& report) {
  const std::size_t at = report.find("\n  all ");
  return at == std::string::npos ? 0 : std::stod(report.substr(at + 7));
}

double peak_of(const nlohmann::json& summary) {
  double most = 0;
  for (const auto& mib : summary["memory"]["peak_resident_mib_per_rank"]) most = std::max(most, mib.get<double>());
  return most;
}

TEST_F(PlanOfARun, MemoryIsWithinATenthOfThePeakOfFiveDecks) {
  const std::string shard = write_pairs(workplace_);
  const Words large = {"--model.vocabulary=8000", "--model.width=256",        "--model.heads=4",
                       "--model.head_width=64",   "--model.hidden=1024",      "--run.steps=1",
                       "--checkpoint.every=0",    "--checkpoint.final=false", "--batch.rows=8"};
  ASSERT_EQ(run(2, smoke(shard, workplace_.path("small"), {"--run.steps=1"})).exit_code, 0);
  const std::string machine = machine_from(workplace_.path("small"));
  const std::vector<Words> decks = {
      smoke(shard, "", with(large, {"--moe.experts=8", "--parallel.expert=2"})),
      smoke(shard, "",
            with(large, {"--moe.experts=8", "--optimizer.name=adamw", "--optimizer.schedule=constant",
                         "--optimizer.learning_rate=0.001"})),
      smoke(shard, "", with(large, {"--moe.router=none", "--model.encoder_layers=6", "--run.precision=bf16"})),
      smoke(shard, "", with(large, {"--moe.router=expert_choice", "--batch.rows=12", "--batch.input_length=256"})),
      smoke_palm(shard, "", with(large, {"--model.decoder_layers=6", "--batch.rows=16", "--batch.microbatch_rows=4"}))};
  for (std::size_t i = 0; i < decks.size(); ++i) {
    const std::string dir = workplace_.path("deck" + std::to_string(i));
    const Ended planned =
        run(0, with(decks[i], {"--run.dir=" + dir, "--run.stage=plan", "--plan.ranks=2", "--plan.machine=" + machine}));
    ASSERT_EQ(planned.exit_code, 0) << planned.output;
    EXPECT_FALSE(std::filesystem::exists(dir)) << "a plan writes nothing";
    const Ended ended = run(2, with(decks[i], {"--run.dir=" + dir}));
    ASSERT_EQ(ended.exit_code, 0) << ended.output;
    const double plan = mib_of_plan(planned.output), peak = peak_of(summary_of(dir));
    EXPECT_NEAR(plan, peak, 0.1 * peak) << "deck " << i << "\n" << planned.output;
  }
}

TEST_F(PlanOfARun, RunsSayWhatWasPredictedAndShowThemselves) {
  const std::string dir = workplace_.path("run");
  const Ended ended =
      run(2, smoke(write_pairs(workplace_), dir,
                   {"--run.steps=4", "--parallel.expert=2", "--checkpoint.every=0", "--faults.compare_every=1"}));
  ASSERT_EQ(ended.exit_code, 0) << ended.output;

  EXPECT_THAT(ended.output, HasSubstr("s for a step of full rows, roughly"));
  EXPECT_THAT(ended.output, HasSubstr("predicted against measured on rank 0: memory "));
  const auto prediction = summary_of(dir)["last_session"]["prediction"];
  EXPECT_GT(prediction["predicted_step_seconds"].get<double>(), 0);
  for (const char* kind : {"reduce_scatter_tree", "all_gather_segments", "all_reduce", "all_to_all"}) {
    const auto counts = prediction["collectives_of_rank_0_per_step"][kind];
    EXPECT_GT(counts["predicted_bytes"].get<double>(), 0) << kind;
    for (const std::string what : {"calls", "messages", "bytes"}) {
      EXPECT_EQ(counts["predicted_" + what].get<double>(), counts["measured_" + what].get<double>()) << kind << what;
    }
  }
  EXPECT_EQ(std::distance(std::filesystem::directory_iterator(dir + "/tensorboard"), {}), 1);
  const Ended watched = run(0, {"watch", dir});
  EXPECT_EQ(watched.exit_code, 0);
  EXPECT_THAT(watched.output, HasSubstr("pretrain, finished"));
  EXPECT_THAT(watched.output, HasSubstr("step 4/4"));
  EXPECT_EQ(run(0, {"watch", workplace_.path("nothing")}).exit_code, 2);
}

TEST_F(PlanOfARun, AStudyOfCheckpointsSavesInEveryWay) {
  const std::string dir = workplace_.path("saving"), study = " --ranks 2 --experts 1 --steps 8 --study checkpoints";
  const Ended ended = scaling(dir, study);
  ASSERT_EQ(ended.exit_code, 0) << ended.output;

  for (const std::string way : {"none", "behind", "standing_still"}) {
    const std::string run = dir + "/2x1_rows12_" + way;
    const auto saved = summary_of(run)["last_session"]["checkpoints"];
    EXPECT_EQ(saved["count"], way == "none" ? 0 : 3) << saved;
    EXPECT_EQ(saved["bytes"].get<double>() > 1e5, way != "none") << saved;
    EXPECT_EQ(saved["stall_seconds"].get<double>() > 0, way != "none") << saved;
    EXPECT_LE(saved["longest_stall_seconds"].get<double>(), saved["stall_seconds"].get<double>());
    const auto values = deck_values(read_file(run + "/deck.resolved"));
    EXPECT_EQ(values.at("checkpoint.background"), way == "standing_still" ? "false" : "true");
  }
  EXPECT_EQ(count_lines(dir + "/2x1_rows12_checkpoints.csv"), 1 + 3);
  EXPECT_THAT(ended.output, HasSubstr("standing_still"));
  EXPECT_EQ(scaling(dir, study + " --list").exit_code, 2);
}

TEST_F(PlanOfARun, WrongPlansAreRefused) {
  const Ended rows = run(0, smoke("", workplace_.path("run"), {"--run.stage=plan", "--plan.ranks=5"}));
  EXPECT_EQ(rows.exit_code, 2);
  EXPECT_THAT(rows.output, HasSubstr("batch.rows = 12 does not divide by 5 ranks"));
  const Ended machine = run(0, smoke("", workplace_.path("run"), {"--run.stage=plan", "--plan.machine=/no/machine"}));
  EXPECT_EQ(machine.exit_code, 2);
  EXPECT_THAT(machine.output, HasSubstr("plan.machine: /no/machine cannot be read"));
}

TEST_F(PlanOfARun, CalibrationMeasuresAMachineThatAPlanCanRead) {
  const std::string dir = workplace_.path("study"), file = dir + "/machine_2_ranks.json";
  const std::string study = " --ranks 2 --experts 1 --steps 2 --study strong --calibrate";
  const Ended measured = scaling(dir, study);
  ASSERT_EQ(measured.exit_code, 0) << measured.output;
  EXPECT_THAT(measured.output, HasSubstr("measuring 2 ranks"));
  for (const auto& entry : std::filesystem::directory_iterator(dir)) {
    const std::string name = entry.path().filename().string();
    EXPECT_TRUE(!name.starts_with("machine_") || name == "machine_2_ranks.json") << name;
    EXPECT_TRUE(!name.starts_with("random_") || name.ends_with(".h5")) << name;
  }
  EXPECT_EQ(summary_of(dir + "/2x1_rows12")["last_session"]["prediction"]["machine"], read_machine(file).name);
  const Ended again = scaling(dir, study);
  EXPECT_EQ(again.exit_code, 0) << again.output;
  EXPECT_THAT(again.output, Not(HasSubstr("measuring"))) << "a machine is measured once";

  const Machine machine = read_machine(file);

  EXPECT_EQ(machine.nodes * machine.ranks_per_node, 2);
  EXPECT_GE(machine.threads_per_rank, 1);
  EXPECT_GT(machine.memory_bytes_per_node, 1e8);
  EXPECT_GT(machine.program_bytes_per_rank, 1e7) << "a program with MPI and its kernels";
  EXPECT_LT(machine.program_bytes_per_rank, 1e9) << "what was measured with is counted as the program's";
  const auto expect_rate = [](const std::string& what, double rate, double least, double most) {
    EXPECT_TRUE(std::isfinite(rate) && rate >= least && rate <= most) << what << ": " << rate;
  };
  expect_rate("memory", machine.bytes_per_second, 1e7, 1e13);
  for (std::size_t p = 0; p < kPrecisions; ++p) {
    for (const ProductRate& rate : {machine.product[p], machine.weight_gradient[p]}) {
      expect_rate("operations", rate.flops, 1e7, 1e17);
      expect_rate("bytes", rate.bytes_per_second, 1e5, 1e17);
      expect_rate("call", rate.call_seconds, 0, 1);
    }
    expect_rate("attention", machine.attention[p].flops, 1e6, 1e17);
    expect_rate("attention, element", machine.attention[p].element_seconds, 0, 1e-3);
    for (std::size_t s = 0; s < std::size_t(Stream::count); ++s) {
      expect_rate(name_of(Stream(s)), machine.stream_seconds[s][p], 1e-13, 1e-3);
    }
  }
  for (const LinkRate& link : {machine.in_node, machine.between_nodes}) {
    expect_rate("message", link.latency_seconds, 0, 10);
    expect_rate("link", link.bytes_per_second, 1e4, 1e15);
  }
  const Ended planned =
      run(0, smoke("", workplace_.path("run"), {"--run.stage=plan", "--plan.ranks=2", "--plan.machine=" + file}));
  EXPECT_EQ(planned.exit_code, 0) << planned.output;
  EXPECT_THAT(planned.output, HasSubstr("predicted time of a step of full rows"));
}

/// The tool beside the program, with its runs.
TEST_F(PlanOfARun, StudyOfLayouts) {
  const std::string dir = workplace_.path("study");
  const auto tool = [&](const std::string& more) { return scaling(dir, " --ranks 1,2 --steps 3 " + more); };
  const Ended list = tool("--list");
  EXPECT_EQ(list.output,
            "0 1x1_rows12 ranks 1 rows 12\n1 2x1_rows12 ranks 2 rows 12\n2 1x2_rows12 ranks 2 rows 12\n"
            "3 2x1_rows24 ranks 2 rows 24\n4 1x2_rows24 ranks 2 rows 24\n");
  EXPECT_EQ(tool("--point 0").exit_code, 0);
  const Ended early = tool("--collect");
  EXPECT_EQ(early.exit_code, 1);
  EXPECT_THAT(early.output, HasSubstr("2x1_rows12: expected a run that has ended"));
  const Ended whole = tool("");
  ASSERT_EQ(whole.exit_code, 0) << whole.output;
  for (const char* file : {"scaling.csv", "time.svg", "efficiency.svg", "prediction.svg"}) {
    EXPECT_TRUE(std::filesystem::exists(dir + "/" + file)) << file;
  }
  EXPECT_EQ(count_lines(dir + "/scaling.csv"), 6);
  // One loss that is off by a hundredth.
  const std::string metrics = dir + "/2x1_rows12/metrics.jsonl";
  std::vector<nlohmann::json> lines = metrics_of(dir + "/2x1_rows12");
  lines.back()["loss"] = lines.back()["loss"].get<double>() * 1.01;
  std::ofstream changed(metrics);
  for (const auto& line : lines) changed << line.dump() << "\n";
  changed.close();
  const Ended strict = tool("--collect");
  EXPECT_EQ(strict.exit_code, 1);
  EXPECT_THAT(strict.output, HasSubstr("from those of the first layout"));
  EXPECT_EQ(tool("--study fast").exit_code, 2);
}

}  // namespace
}  // namespace flanmoe::regression
