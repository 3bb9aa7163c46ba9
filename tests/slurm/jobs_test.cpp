// The scripts of jobs/ on a real Slurm cluster: chains, time limits, signals, dead nodes, sweeps.
#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/file.h>
#include <unistd.h>

#include "base/hdf5.hpp"
#include "slurm/job_data.hpp"
#include "slurm/slurm_job.hpp"
#include "train/run_folder.hpp"

namespace flanmoe::slurm {
namespace {

namespace fs = std::filesystem;
using namespace regression;

class Jobs : public testing::Test {
 protected:
  static void SetUpTestSuite() {
    ASSERT_NE(std::getenv("CLUSTER"), nullptr) << "start this by tests/slurm/cluster 4";
    silence_hdf5();
    workplace_ = std::make_unique<Workplace>();
    fs::current_path(workplace_->path(""));
    write_data(*workplace_);
    start_limited();
  }
  /// Slurm sends the signal for so long before the limit up to a minute early, but looks every half a minute only: it
  /// comes while other tests run. Until then the rank is stopped, early in its run; Slurm wakes what it signals.
  static void start_limited() {
    limited_ = submit("submit", {"--nodes=1", "--time=1", "--stop-before=57"}, stage("pretrain", "limited", limited()));
    ASSERT_TRUE(wait_until([] { return log_of("limited").find("started") != std::string::npos; }))
        << outputs("limited");
    ASSERT_TRUE(wait_until([] { return node_of(limited_).ranks() == 1; })) << outputs("limited");
    const Node node = node_of(limited_);
    ASSERT_TRUE(wait_until([] { return steps_done("limited") >= 3; })) << outputs("limited");
    node.signal_ranks(SIGSTOP);
    ASSERT_LT(steps_done("limited"), 1000) << "it was over before it was stopped";
  }
  static Words limited() {
    return {"--run.steps=1000", "--run.log_every=1000", "--model.dropout=0.1", "--run.watchdog_seconds=600"};
  }
  /// A node that runs a rank of this job now; of none while there is no rank.
  static Node node_of(const std::string& job) {
    for (const char* name : {"n1", "n2", "n3", "n4"}) {
      Node node(name);
      node.look(job);
      if (node.ranks() > 0) return node;
    }
    return Node("");
  }
  static void TearDownTestSuite() {
    fs::current_path("/");
    workplace_.reset();
  }
  static std::string path(const std::string& name) { return workplace_->path(name); }

  /// A stage in the run folder of this name.
  static Words stage(const std::string& stage, const std::string& name, const Words& more = {}) {
    const Words words = smoke(path("sums.h5"), path(name),
                              {"--run.stage=" + stage, "--model.vocabulary=320", "--batch.input_length=32",
                               "--batch.target_length=16", "--run.steps=4", "--checkpoint.every=0"});
    return with(words, more);
  }
  /// The same of the tutorial's deck, as jobs/tutorial.sh runs it: its model, on few rows for few steps.
  static Words tutorial(const std::string& stage, const std::string& name, const Words& more) {
    return with({FLANMOE_SOURCE_DIR "/input/tutorial.ini", "--run.stage=" + stage, "--run.dir=" + path(name),
                 "--run.steps=4", "--run.watchdog_seconds=60", "--run.threads=1", "--batch.rows=8",
                 "--model.vocabulary=320", "--data.tokenizer=" + path("tokenizer.model")},
                more);
  }
  static std::int64_t steps_done(const std::string& name) { return count_lines(path(name) + "/metrics.jsonl"); }
  static std::string log_of(const std::string& name) { return text_of(path(name) + "/jobs.log"); }
  static std::int64_t times(const std::string& text, const std::string& part) {
    std::int64_t count = 0;
    for (std::size_t at = 0; (at = text.find(part, at)) != std::string::npos; ++at) ++count;
    return count;
  }
  /// Everything that the jobs of a run wrote, for messages.
  static std::string outputs(const std::string& name) {
    std::string text = log_of(name);
    std::error_code none;
    for (const auto& file : fs::directory_iterator(path(name), none)) {
      if (file.path().extension() == ".out") text += text_of(file.path());
    }
    return text.size() < 6000 ? text : text.substr(0, 3000) + "\n...\n" + text.substr(text.size() - 3000);
  }
  static std::string submit(const std::string& script, const Words& options, const Words& words,
                            const std::string& environment = "") {
    Words all = options;
    all.insert(all.end(), words.begin(), words.end());
    const Ended ended = jobs(script, all, environment);
    EXPECT_EQ(ended.exit_code, 0) << ended.output;
    return ended.output;
  }
  static int status(const std::string& name) { return jobs("status", {path(name)}).exit_code; }
  static void expect_near_losses(const std::string& a, const std::string& b) {
    const auto expected = metrics_of(path(a)), metrics = metrics_of(path(b));
    ASSERT_EQ(metrics.size(), expected.size());
    for (std::size_t i = 0; i < metrics.size(); ++i) {
      const double loss = expected[i]["loss"];
      EXPECT_NEAR(metrics[i]["loss"].get<double>(), loss, 1e-5 * loss) << "step " << i + 1;
    }
  }

  /// Kills a node of a job while a checkpoint is written, and waits until the requeued job has ended on the others.
  static void lose_a_node(const std::string& name, const std::string& job) {
    const auto checkpoint_under_way = [&] {
      std::error_code gone;
      for (const auto& entry : fs::directory_iterator(path(name) + "/checkpoints", gone)) {
        if (!entry.path().filename().string().starts_with("step-")) return true;
      }
      return false;
    };
    Node node("n3");
    ASSERT_TRUE(wait_until([&] { return steps_done(name) >= 2; })) << outputs(name);
    node.look(job);
    ASSERT_EQ(node.ranks(), 1U);
    const bool in_checkpoint = wait_until(checkpoint_under_way, 10);
    node.kill_all();
    node.report_down();

    EXPECT_TRUE(in_checkpoint);
    EXPECT_LT(steps_done(name), 8) << "it was over before the node was killed";
    EXPECT_TRUE(wait_for_end({job})) << outputs(name);
    node.start_again();
  }
  /// An undisturbed run on 2 ranks, and one that begins on 4 nodes and loses one.
  static void run_twice(const std::string& name, const Words& more) {
    const Words run_of_8 = with({"--run.steps=8", "--checkpoint.every=1", "--model.dropout=0.1"}, more);
    const Ended undisturbed = run(2, stage("pretrain", name + "_undisturbed", run_of_8));
    ASSERT_EQ(undisturbed.exit_code, 0) << undisturbed.output;
    shell("scancel " + limited_);
    ASSERT_TRUE(wait_until([] { return shell("sinfo --noheader --format=%T%D").output == "idle4"; }));
    const std::string job = submit("submit", {"--nodes=2-4", "--time=5"}, stage("pretrain", name, run_of_8));
    lose_a_node(name, job);
    EXPECT_EQ(field_of(job, "JobState"), "COMPLETED") << outputs(name);
    EXPECT_NE(log_of(name).find("nodes=4 ranks=4"), std::string::npos) << log_of(name);
    EXPECT_EQ(times(log_of(name), " done"), 1) << log_of(name);  // srun ended with 0 when the node died, too
  }

  static inline std::unique_ptr<Workplace> workplace_;
  static inline std::string limited_;  // a job that meets its time limit
};

TEST_F(Jobs, ChainOfTheTutorialRunsItsStagesInOrder) {
  const Words tasks = {"--batch.input_length=192",
                       "--batch.target_length=64",
                       "--evaluate.max_new_tokens=4",
                       "--evaluate.limit=5",
                       "--data.train=" + path("tasks/*.h5"),
                       "--evaluate.shards=" + path("tasks/*.h5"),
                       "--data.exclude_tasks=antonym package_section"};
  Words words = tutorial("pretrain", "chain/pretrain", {"--data.train=" + path("text.h5")});
  const auto then = [&](const Words& more) {
    words.emplace_back("then");
    words.insert(words.end(), more.begin(), more.end());
  };
  then(tutorial("instruct", "chain/instruct", tasks));
  then(tutorial("finetune", "chain/finetune",
                with(tasks, {"--data.train=" + path("tasks/package_section.h5"), "--data.exclude_tasks="})));
  then(tutorial("evaluate", "chain/evaluate", tasks));

  const std::string numbers = submit("chain", {"--nodes=2", "--time=5"}, words);

  std::istringstream in(numbers);
  const Words all{std::istream_iterator<std::string>(in), {}};
  ASSERT_EQ(all.size(), 4U) << numbers;
  for (std::size_t i = 1; i < all.size(); ++i) {
    EXPECT_EQ(field_of(all[i], "Dependency"), fmt::format("afterok:{}(unfulfilled)", all[i - 1]));
  }
  EXPECT_EQ(status("chain/evaluate"), 75);
  ASSERT_TRUE(wait_for_end(all, 120)) << outputs("chain/pretrain") << outputs("chain/evaluate");
  std::string before;
  for (std::size_t i = 0; i < all.size(); ++i) {
    const std::string name = std::array{"chain/pretrain", "chain/instruct", "chain/finetune", "chain/evaluate"}[i];
    EXPECT_EQ(field_of(all[i], "JobState"), "COMPLETED") << outputs(name);
    EXPECT_EQ(status(name), 0) << log_of(name);
    if (i > 0) {
      EXPECT_NE(outputs(name).find(before), std::string::npos) << outputs(name);
    }
    before = path(name) + "/checkpoints/step-00000004";
  }
  EXPECT_NE(outputs("chain/instruct").find("task sum:"), std::string::npos) << outputs("chain/instruct");
  EXPECT_EQ(outputs("chain/instruct").find("task antonym:"), std::string::npos) << "held out";
  const auto evaluation = nlohmann::json::parse(text_of(path("chain/evaluate") + "/evaluation.json"));
  EXPECT_EQ(evaluation.at("ranks"), 2);
  for (const char* task : {"sum", "antonym", "package_section"}) {
    EXPECT_NE(evaluation.dump().find(fmt::format("\"{}\"", task)), std::string::npos) << evaluation.dump(2);
  }
}

TEST_F(Jobs, SignalInTheMiddleRequeuesAndEndsWithTheSameBits) {
  const Words run_of_100 = {"--run.steps=100", "--model.dropout=0.1", "--parallel.expert=2"};
  const Ended undisturbed = run(2, stage("pretrain", "undisturbed", run_of_100));
  ASSERT_EQ(undisturbed.exit_code, 0) << undisturbed.output;

  const std::string job = submit("submit", {"--nodes=2", "--time=5"}, stage("pretrain", "signalled", run_of_100));
  ASSERT_TRUE(wait_until([&] { return steps_done("signalled") >= 3; })) << outputs("signalled");
  shell("scancel --signal=USR1 " + job);

  ASSERT_TRUE(wait_until([&] { return log_of("signalled").find("requeued") != std::string::npos; }))
      << outputs("signalled");
  EXPECT_LT(steps_done("signalled"), 100);
  EXPECT_EQ(status("signalled"), 75);
  ASSERT_TRUE(wait_for_end({job})) << outputs("signalled");
  EXPECT_EQ(field_of(job, "JobState"), "COMPLETED") << outputs("signalled");
  EXPECT_EQ(field_of(job, "Restarts"), "1");
  EXPECT_EQ(status("signalled"), 0) << log_of("signalled");
  EXPECT_EQ(difference_of_metrics(path("undisturbed"), path("signalled")), "");
  EXPECT_EQ(difference_of_checkpoints(newest_of(path("undisturbed")), newest_of(path("signalled"))), "");
}

TEST_F(Jobs, WrongDeckIsRefusedBeforeAnyStep) {
  Words words = stage("pretrain", "refused/first");
  words.emplace_back("then");
  const Words second = stage("finetune", "refused/second", {"--batch.rows=7"});
  words.insert(words.end(), second.begin(), second.end());

  const Ended chain = jobs("chain", with(words, {"--nodes=2"}));
  EXPECT_EQ(chain.exit_code, 2);
  EXPECT_NE(chain.output.find("batch.rows = 7 does not divide by 2 ranks"), std::string::npos) << chain.output;
  EXPECT_FALSE(fs::exists(path("refused"))) << "nothing may be written";

  // Right when it is submitted, wrong when it starts; what waits for it is cancelled.
  fs::copy_file(path("sums.h5"), path("vanishes.h5"));
  const std::string data = "--data.train=" + path("vanishes.h5");
  const std::string job = submit("submit", {"--time=5", "--sbatch=--hold"}, stage("pretrain", "vanished", {data}));
  const std::string next = submit("submit", {"--time=5", "--after=" + job}, stage("pretrain", "never"));
  fs::remove(path("vanishes.h5"));
  shell("scontrol release " + job);
  ASSERT_TRUE(wait_for_end({job, next})) << outputs("vanished");
  EXPECT_EQ(field_of(job, "JobState"), "FAILED");
  EXPECT_EQ(field_of(job, "ExitCode"), "2:0");
  EXPECT_EQ(field_of(next, "JobState"), "CANCELLED");
  EXPECT_EQ(times(log_of("vanished"), "started"), 0) << log_of("vanished");
  EXPECT_NE(log_of("vanished").find("refused exit=2"), std::string::npos) << log_of("vanished");
  EXPECT_NE(outputs("vanished").find("data.train: expected shard files"), std::string::npos) << outputs("vanished");
  EXPECT_EQ(status("vanished"), 1);
  EXPECT_EQ(status("never"), 1);

  Words without_deck = stage("pretrain", "no_deck");
  without_deck.front() = path("vanishes.ini");
  fs::copy_file(FLANMOE_SMOKE_DECK, without_deck.front());
  const std::string last = submit("submit", {"--time=5", "--sbatch=--hold"}, without_deck);
  fs::remove(without_deck.front());
  shell("scontrol release " + last);
  ASSERT_TRUE(wait_for_end({last})) << outputs("no_deck");
  EXPECT_EQ(field_of(last, "ExitCode"), "2:0");
  EXPECT_NE(log_of("no_deck").find("refused exit=2"), std::string::npos) << outputs("no_deck");
}

TEST_F(Jobs, KilledRankIsTriedAgainAndThenGivenUp) {
  const Words endless = {"--run.steps=1000000", "--run.log_every=1000"};
  const std::string job =
      submit("submit", {"--nodes=2", "--time=5", "--retries=1"}, stage("pretrain", "failing", endless));
  for (const char* start : {"restart=0 started", "restart=1 started"}) {
    ASSERT_TRUE(wait_until([&] { return log_of("failing").find(start) != std::string::npos; })) << outputs("failing");
    ASSERT_TRUE(wait_until([&] { return steps_done("failing") >= 2 && node_of(job).ranks() == 1; }))
        << outputs("failing");
    node_of(job).signal_ranks(SIGKILL);  // one rank only
  }

  ASSERT_TRUE(wait_for_end({job})) << outputs("failing");
  EXPECT_EQ(times(log_of("failing"), "failed exit="), 2) << log_of("failing");
  EXPECT_EQ(times(log_of("failing"), "requeued after a failure"), 1) << log_of("failing");
  EXPECT_EQ(field_of(job, "JobState"), "FAILED");
  EXPECT_EQ(field_of(job, "ExitCode"), "1:0");
  EXPECT_NE(log_of("failing").find("given up"), std::string::npos) << log_of("failing");
  EXPECT_EQ(status("failing"), 1);
}

TEST_F(Jobs, FailureThatCannotBeRecordedIsNotTriedAgain) {
  fs::create_directories(path("no_log") + "/metrics.jsonl/in_the_way");
  const std::string job = submit("submit", {"--time=5", "--sbatch=--hold"}, stage("pretrain", "no_log"));
  fs::remove(path("no_log") + "/jobs.log");
  fs::create_directory(path("no_log") + "/jobs.log");
  shell("scontrol release " + job);

  ASSERT_TRUE(wait_for_end({job})) << outputs("no_log");
  EXPECT_EQ(field_of(job, "ExitCode"), "1:0") << outputs("no_log");
  EXPECT_EQ(field_of(job, "Restarts"), "0");
  EXPECT_NE(outputs("no_log").find("jobs.log cannot be written"), std::string::npos) << outputs("no_log");
}

TEST_F(Jobs, RunFolderInUse) {
  const Words endless = {"--run.steps=1000000", "--run.log_every=1000"};
  const Words words = stage("pretrain", "shared", endless);
  const std::string first = submit("submit", {"--time=5", "--retries=1"}, words);
  ASSERT_TRUE(wait_until([] { return steps_done("shared") >= 1; })) << outputs("shared");

  // A second job on the run is refused and leaves the word of how it stands to the first.
  const std::string second = submit("submit", {"--time=5"}, words);
  ASSERT_TRUE(wait_for_end({second})) << outputs("shared");
  EXPECT_EQ(field_of(second, "ExitCode"), "2:0") << outputs("shared");
  EXPECT_NE(log_of("shared").find("job=" + second + " restart=0 refused"), std::string::npos) << log_of("shared");
  const Ended ended = jobs("status", {path("shared")});
  EXPECT_EQ(ended.exit_code, 75) << ended.output;
  EXPECT_NE(ended.output.find("running    " + first), std::string::npos) << ended.output;

  // A job that starts again and finds its folder in use (by what is left of a rank, say) tries once more.
  shell("scancel --signal=USR1 " + first);
  ASSERT_TRUE(wait_until([] { return times(log_of("shared"), "requeued exit=75") == 1; })) << outputs("shared");
  const int lock = open((path("shared") + "/lock").c_str(), O_RDWR | O_CLOEXEC);
  ASSERT_TRUE(wait_until([&] { return flock(lock, LOCK_EX | LOCK_NB) == 0; }));
  ASSERT_TRUE(wait_for_end({first})) << outputs("shared");
  EXPECT_EQ(times(log_of("shared"), "failed exit=2"), 2) << log_of("shared");
  EXPECT_EQ(times(log_of("shared"), "requeued after a failure"), 1) << log_of("shared");
  EXPECT_NE(log_of("shared").find("given up"), std::string::npos) << log_of("shared");
  close(lock);
}

TEST_F(Jobs, OtherRanksThanSlurmCountsAreRefused) {
  const Ended ended = run(1, stage("pretrain", "apart"), {"SLURM_NTASKS=2"});

  EXPECT_NE(ended.output.find("Slurm says 2 tasks (SLURM_NTASKS), MPI sees 1 ranks"), std::string::npos)
      << ended.output;
  EXPECT_EQ(ended.exit_code, 2);
  EXPECT_FALSE(fs::exists(path("apart")));
}

TEST_F(Jobs, DryRunPrintsTheScriptAndWritesNothing) {
  Words words = stage("pretrain", "dry");
  const Ended dry = jobs("submit", with(words, {"--nodes=2-4", "--time=1-0", "--account=physics", "--partition=big",
                                                "--after=17:18", "--sbatch=--constraint=fast", "--dry-run"}));

  EXPECT_EQ(dry.exit_code, 0) << dry.output;
  for (const char* line : {"#SBATCH --nodes=2-4\n", "#SBATCH --time=1-0\n", "#SBATCH --account=physics\n",
                           "#SBATCH --partition=big\n", "#SBATCH --dependency=afterok:17:18\n",
                           "#SBATCH --constraint=fast\n", "#SBATCH --signal=USR1@300\n", "#SBATCH --requeue\n"}) {
    EXPECT_NE(dry.output.find(line), std::string::npos) << line << dry.output;
  }
  EXPECT_FALSE(fs::exists(path("dry")));
  EXPECT_EQ(jobs("submit", with(words, {"--nodes=5", "--dry-run"})).exit_code, 2);
  for (const Words& wrong : {Words{"--nodes=0"},
                             {"--nodes=4-2"},
                             {"--time=soon"},
                             {"--time=2:00", "--stop-before=120"},
                             {"--after=x"},
                             {"--ranks-per-node=none"}}) {
    EXPECT_EQ(jobs("submit", with(words, wrong)).exit_code, 2) << wrong.front();
  }
  EXPECT_FALSE(fs::exists(path("dry")));
  words.insert(words.end(), {"--vary", "batch.rows=12,7", "--nodes=2", "--dry-run"});
  const Ended sweep = jobs("sweep", words);
  EXPECT_EQ(sweep.exit_code, 2);
  EXPECT_NE(sweep.output.find("batch.rows = 7 does not divide by 2 ranks"), std::string::npos) << sweep.output;
  EXPECT_NE(sweep.output.find("1) run="), std::string::npos) << sweep.output;
  EXPECT_FALSE(fs::exists(path("dry")));
}

TEST_F(Jobs, OptionsComeBeforeTheEnvironment) {
  const std::string environment = "SBATCH_ACCOUNT=theirs SBATCH_PARTITION=none SBATCH_TIMELIMIT=7 SBATCH_NO_REQUEUE=1 ";
  const Words words = stage("pretrain", "options");
  const std::string job =
      submit("submit", {"--account=mine", "--partition=all", "--time=5", "--sbatch=--hold"}, words, environment);
  EXPECT_EQ(field_of(job, "Account"), "mine");
  EXPECT_EQ(field_of(job, "TimeLimit"), "00:05:00");
  EXPECT_EQ(field_of(job, "Requeue"), "1");
  const std::string other = submit("submit", {"--sbatch=--hold"}, words, "SBATCH_ACCOUNT=theirs ");
  EXPECT_EQ(field_of(other, "Account"), "theirs");
  shell("scancel " + job + " " + other);
  EXPECT_EQ(status("options"), 1) << "cancelled: nobody goes on with it";
}

TEST_F(Jobs, FolderWithAnyName) {
  const std::string name = "a b/100%j";
  const std::string job = submit("submit", {"--time=5"}, stage("pretrain", "", {"--run.dir=" + name}));
  ASSERT_TRUE(wait_for_end({job})) << outputs(name);
  EXPECT_EQ(status(name), 0) << log_of(name);
  EXPECT_TRUE(fs::exists(fmt::format("{}/slurm-{}.out", path(name), job)));

  // The script does not depend on where it is submitted.
  const std::string again = shell(fmt::format("cd / && sbatch --parsable '{}/job.sbatch'", path(name))).output;
  ASSERT_TRUE(wait_for_end({again})) << outputs(name);
  EXPECT_NE(log_of(name).find("job=" + again + " restart=0 done"), std::string::npos) << log_of(name);
  EXPECT_TRUE(fs::exists(fmt::format("{}/slurm-{}.out", path(name), again)));
}

TEST_F(Jobs, StatusOfWhatIsNotInOrder) {
  const auto log = [](const std::string& text) {
    fs::create_directories(path("by_hand"));
    std::ofstream(path("by_hand") + "/jobs.log") << text;
  };
  log("2026-01-01T00:00:01 job=900 restart=0 started nodes=1 ranks=1 at=0\n"
      "2026-01-01T00:00:02 job=900 restart=0 done\n"
      "2026-01-01T00:00:02 job=900 submitted\n");
  EXPECT_EQ(status("by_hand"), 0);
  log("2026-01-01T00:00:02 job=900 submitted\n");
  EXPECT_EQ(status("by_hand"), 1) << "Slurm does not know it";
  const Ended silent =
      shell(fmt::format("SLURM_CONF=/dev/null {}/jobs/status {}", FLANMOE_SOURCE_DIR, path("by_hand")));
  EXPECT_EQ(silent.exit_code, 75) << silent.output;
  EXPECT_NE(silent.output.find("unreachable"), std::string::npos) << silent.output;
}

TEST_F(Jobs, TimeLimitRequeuesAndEndsWithTheSameBits) {
  const Ended undisturbed = run(1, stage("pretrain", "unlimited", limited()));
  ASSERT_EQ(undisturbed.exit_code, 0) << undisturbed.output;

  ASSERT_TRUE(wait_for_end({limited_})) << outputs("limited");
  std::int64_t saved = 0, started = 0;
  std::istringstream log(log_of("limited"));
  for (std::string line; std::getline(log, line);) {
    const std::int64_t at = std::atoll(line.c_str() + std::min(line.rfind("at=") + 3, line.size()));
    if (line.find("restart=0 requeued exit=75") != std::string::npos) saved = at;
    if (line.find("restart=1 started") != std::string::npos) started = at;
  }
  EXPECT_GT(saved, 0) << log.str();
  EXPECT_EQ(started, saved) << log.str();
  EXPECT_EQ(status("limited"), 0) << log.str();
  EXPECT_EQ(difference_of_metrics(path("unlimited"), path("limited")), "");
  EXPECT_EQ(difference_of_checkpoints(newest_of(path("unlimited")), newest_of(path("limited"))), "");
}

TEST_F(Jobs, SweepRunsEveryCombinationInItsFolder) {
  const Words deck = stage("pretrain", "sweep", {"--model.preset=gshard"});
  const auto sweep = [&](const std::string& balance, const Words& more) {
    const Words axes = {"moe.router=top_k,expert_choice", "moe.experts=2,4", "moe.top_k=2,3",
                        "moe.balance_coefficient=" + balance, "optimizer.freeze=gate,"};
    Words options = with({"--time=5", "--skip-wrong"}, more);
    for (const std::string& axis : axes) options.insert(options.end(), {"--vary", axis});
    return submit("sweep", options, deck);
  };
  // All five axes: 32 combinations, of which 3 of 2 experts are no choice.
  const std::string all = sweep("0,0.1", {"--dry-run"});
  EXPECT_EQ(times(all, "left out"), 8) << all;
  EXPECT_EQ(times(all, ") run="), 24) << all;

  const std::string job = sweep("0.1", {});
  const std::string number = job.substr(job.rfind('\n') + 1);
  ASSERT_TRUE(wait_for_end({number})) << job;
  for (const char* router : {"top_k", "expert_choice"}) {
    for (const auto& [experts, k] : {std::pair{2, 2}, {4, 2}, {4, 3}}) {
      for (const std::string freeze : {"gate", ""}) {
        const std::string folder = fmt::format("sweep/router-{}.experts-{}.top_k-{}.balance_coefficient-0.1.freeze-{}",
                                               router, experts, k, freeze.empty() ? "none" : freeze);
        EXPECT_EQ(status(folder), 0) << log_of(folder);
        EXPECT_EQ(steps_done(folder), 4);
        const auto values = deck_values(text_of(path(folder) + "/deck.resolved"));
        EXPECT_EQ(values.at("moe.router"), router);
        EXPECT_EQ(values.at("moe.experts"), std::to_string(experts));
        EXPECT_EQ(values.at("moe.top_k"), std::to_string(k));
        EXPECT_EQ(values.at("moe.balance_coefficient"), "0.1");
        EXPECT_EQ(values.at("optimizer.freeze"), freeze);
      }
    }
  }
}

TEST_F(Jobs, ScalingStudyRunsEveryLayoutAndComparesThem) {
  const std::string job = submit(
      "scaling",
      {FLANMOE_SMOKE_DECK, "--output", path("scaling"), "--ranks=1,2", "--study=strong", "--steps=2", "--time=5"},
      {"--run.threads=1"});

  ASSERT_TRUE(wait_for_end({job})) << job;
  EXPECT_EQ(field_of(job, "JobState"), "COMPLETED");
  EXPECT_EQ(count_lines(path("scaling") + "/scaling.csv"), 1 + 3) << "1, 2 x 1 and 1 x 2 ranks";
  EXPECT_NE(text_of(path("scaling") + "/2x1_rows12.log").find("2 ranks (2 data x 1 expert)"), std::string::npos);
}

TEST_F(Jobs, DeadNodeInACheckpointAndThreeGoOnWithTheSameLosses) {
  run_twice("three", {});

  EXPECT_NE(log_of("three").find("nodes=3 ranks=3"), std::string::npos) << log_of("three");
  expect_near_losses("three_undisturbed", "three");
}

TEST_F(Jobs, DeadNodeInACheckpointAndTwoGoOnWithTheSameBits) {
  run_twice("two", {"--batch.rows=8", "--reduction.leaves=4"});

  EXPECT_NE(log_of("two").find("nodes=2 ranks=2"), std::string::npos) << log_of("two");
  EXPECT_NE(outputs("two").find("the deck fits 2 of 3 nodes"), std::string::npos) << outputs("two");
  EXPECT_EQ(difference_of_metrics(path("two_undisturbed"), path("two")), "");
  EXPECT_EQ(difference_of_checkpoints(newest_of(path("two_undisturbed")), newest_of(path("two"))), "");
}

}  // namespace
}  // namespace flanmoe::slurm
