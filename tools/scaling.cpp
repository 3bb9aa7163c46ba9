// flanmoe-scaling: one training on several layouts; times by part, efficiency, predicted against measured.
#include "train/scaling.hpp"

#include <fcntl.h>
#include <spawn.h>
#include <sys/wait.h>
#include <unistd.h>

#include <boost/program_options.hpp>
#include <cstring>
#include <filesystem>
#include <iostream>
#include <sstream>

#include "base/hdf5.hpp"
#include "base/host.hpp"
#include "base/tool.hpp"
#include "train/checkpoint_study.hpp"
#include "train/run_folder.hpp"

namespace {

namespace po = boost::program_options;
namespace fs = std::filesystem;
using namespace flanmoe;

constexpr const char* kUsage =
    "usage: flanmoe-scaling DECK --output FOLDER [options] [--section.key=value ...]\n\n"
    "Trains DECK for a few steps on every layout of the given numbers of ranks: with the deck's batch (strong "
    "scaling)\n"
    "and with a batch that grows with the ranks (weak scaling). Then checks that layouts with the same batch have the\n"
    "same losses and writes FOLDER/scaling.csv, time.svg, efficiency.svg and prediction.svg. Where the deck names no\n"
    "data, random tokens fill its rows. What has run is not run again. For job arrays: --list says which layouts\n"
    "there are, --point N runs the Nth (from 0), --collect does what comes after.\n"
    "--study=checkpoints instead measures what checkpoints cost: each layout without any, and with one after every\n"
    "quarter of the steps, written behind the training or standing still; writes FOLDER/LAYOUT_checkpoints.csv.\n"
    "Exit codes: 0 done, 1 a run failed or losses differ, 2 wrong usage.\n\n"
    "Options";

struct Options {
  std::string deck, output, ranks, experts, study, launcher, machine;
  std::int64_t steps = 0;
  int point = -1;
  double tolerance = 0;
  bool list = false, collect = false, calibrate = false;
  std::vector<std::string> overrides;
};

std::vector<int> numbers_of(const std::string& text, const char* option) {
  std::vector<int> numbers;
  std::istringstream in(text);
  for (std::string word; std::getline(in, word, ',');) {
    char* end = nullptr;
    const long value = std::strtol(word.c_str(), &end, 10);
    if (*end != '\0' || value < 1) usage_fail("--{}: expected numbers at least 1, found {}", option, word);
    numbers.push_back(int(value));
  }
  return numbers;
}

Options parse(int argc, char** argv, bool& help) {
  Options o;
  po::options_description known(kUsage);
  po::options_description all;
  known.add_options()("help,h", "this text")("output", po::value(&o.output), "folder of the study")(
      "ranks", po::value(&o.ranks)->default_value("1,2"), "numbers of ranks")(
      "experts", po::value(&o.experts)->default_value(""), "expert degrees; empty: all that divide")(
      "study", po::value(&o.study)->default_value("both"), "strong, weak, both or checkpoints")(
      "steps", po::value(&o.steps)->default_value(10), "steps of each run, at least 2")(
      "launcher", po::value(&o.launcher)->default_value("mpirun -n {ranks}"), "what starts {ranks} ranks")(
      "machine", po::value(&o.machine)->default_value(""), "description of the machine, for the prediction")(
      "calibrate", po::bool_switch(&o.calibrate),
      "measure a description first, for each number of ranks; FOLDER/machine_N_ranks.json is measured once, remove it "
      "to "
      "measure again")("tolerance", po::value(&o.tolerance)->default_value(0),
                       "relative difference of losses; 0: 1e-3, in bf16 2e-2")(
      "list", po::bool_switch(&o.list), "list the layouts")("point", po::value(&o.point), "run one layout only")(
      "collect", po::bool_switch(&o.collect), "check and draw what has run");
  all.add(known).add_options()("deck", po::value(&o.deck));
  std::vector<std::string> words;
  for (int i = 1; i < argc; ++i) {
    const std::string word = argv[i];
    const bool is_key = word.starts_with("--") && word.find('.') < word.find('=');
    (is_key && word.find('=') != std::string::npos ? o.overrides : words).push_back(word);
  }
  po::positional_options_description positional;
  positional.add("deck", 1);
  po::variables_map values;
  po::store(po::command_line_parser(words).options(all).positional(positional).run(), values);
  po::notify(values);
  help = values.contains("help");
  if (help) std::cout << known << "\n";
  return o;
}

std::string program() { return (fs::read_symlink("/proc/self/exe").parent_path() / "flanmoe").string(); }

/// Starts the launcher with more words, output to a file, and waits; the exit code.
int launch(const Options& o, int ranks, const std::vector<std::string>& more, const std::string& log) {
  std::vector<std::string> words;
  std::istringstream in(o.launcher);
  for (std::string word; in >> word;) {
    const std::size_t at = word.find("{ranks}");
    if (at != std::string::npos) word.replace(at, std::strlen("{ranks}"), std::to_string(ranks));
    words.push_back(word);
  }
  words.insert(words.end(), more.begin(), more.end());
  std::vector<char*> pointers;
  for (std::string& word : words) pointers.push_back(word.data());
  pointers.push_back(nullptr);
  posix_spawn_file_actions_t actions;
  posix_spawn_file_actions_init(&actions);
  posix_spawn_file_actions_addopen(&actions, STDOUT_FILENO, log.c_str(), O_WRONLY | O_CREAT | O_TRUNC, 0666);
  posix_spawn_file_actions_adddup2(&actions, STDOUT_FILENO, STDERR_FILENO);
  pid_t child = -1;
  const int failed = posix_spawnp(&child, pointers[0], &actions, nullptr, pointers.data(), environ);
  posix_spawn_file_actions_destroy(&actions);
  if (failed != 0) fail("{} cannot be started: {}", words[0], std::strerror(failed));
  int status = 0;
  while (waitpid(child, &status, 0) < 0 && errno == EINTR) {
  }
  return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
}

/// A file that appears whole under `path`, whichever of several processes makes it: points of an array start at once.
std::string aside_of(const std::string& path) { return fmt::format("{}.{}.{}", path, host_name(), getpid()); }

std::string random_pairs_of(const Options& o, const Deck& deck) { return o.output + "/" + random_pairs_name(deck); }

std::string machine_of(const Options& o, int ranks) {
  if (!o.calibrate) return o.machine;
  const std::string file = fmt::format("{}/machine_{}_ranks.json", o.output, ranks);
  if (fs::exists(file)) return file;
  fmt::print("measuring {} ranks\n", ranks);
  const std::string aside = aside_of(file), log = aside + ".log";
  if (launch(o, ranks, {program(), "calibrate", aside}, log) != 0) fail("calibration failed: {}", log);
  fs::rename(aside, file);
  fs::remove(log);
  return file;
}

std::string folder_of(const Options& o, const ScalingPoint& point) { return o.output + "/" + point.name(); }

/// `saving`: overrides that say how it saves.
void run_point(const Options& o, const Deck& deck, const ScalingPoint& point, const std::string& dir,
               const std::vector<std::string>& saving) {
  std::vector<std::string> words = {program(), o.deck};
  words.insert(words.end(), o.overrides.begin(), o.overrides.end());
  if (deck.data.train.empty()) words.push_back("--data.train=" + random_pairs_of(o, deck));
  if (const std::string machine = machine_of(o, point.ranks); !machine.empty()) {
    words.push_back("--plan.machine=" + machine);
  }
  for (const std::string& word :
       {"--run.dir=" + dir, fmt::format("--run.steps={}", o.steps), fmt::format("--batch.rows={}", point.rows),
        fmt::format("--parallel.expert={}", point.expert), std::string("--checkpoint.final=false"),
        std::string("--evaluate.every=0")}) {
    words.push_back(word);
  }
  words.insert(words.end(), saving.begin(), saving.end());
  fmt::print("{} ranks = {} data x {} expert, {} rows\n", point.ranks, point.ranks / point.expert, point.expert,
             point.rows);
  std::fflush(stdout);
  const std::string log = dir + ".log";
  const int code = launch(o, point.ranks, words, log);
  if (code != 0) fail("{} ended with code {}: {}", dir, code, log);
}

/// One layout that saves in different ways.
void study_checkpoints(const Options& o, const Deck& deck, const ScalingPoint& point) {
  const std::string every = fmt::format("--checkpoint.every={}", o.steps / 4);
  struct Way {
    std::string name;
    std::vector<std::string> words;
  };
  std::vector<SavingResult> results;
  for (const Way& way : {Way{"none", {"--checkpoint.every=0"}},
                         {"behind", {every, "--checkpoint.background=true", "--checkpoint.keep=1"}},
                         {"standing_still", {every, "--checkpoint.background=false", "--checkpoint.keep=1"}}}) {
    const std::string dir = folder_of(o, point) + "_" + way.name;
    fmt::print("{}: ", way.name);
    // Saves are counted by session, steps by run: only a run of one session can be measured.
    if (!fs::exists(dir + "/summary.json")) fs::remove_all(dir);
    run_point(o, deck, point, dir, way.words);
    const auto result = read_saving_result(dir, way.name);
    if (!result) fail("{}: expected a run that has ended", dir);
    results.push_back(*result);
  }
  const std::string csv = folder_of(o, point) + "_checkpoints.csv";
  write_file(csv, saving_csv(results));
  fmt::print("{}written: {}\n", saving_table(results), csv);
}

/// Checks and draws; the exit code.
int collect(const Options& o, const Deck& deck, const std::vector<ScalingPoint>& points) {
  std::vector<ScalingResult> results;
  for (const ScalingPoint& point : points) {
    const auto result = read_scaling_result(folder_of(o, point), point);
    if (!result) fail("{}: expected a run that has ended", folder_of(o, point));
    results.push_back(*result);
  }
  write_file(o.output + "/scaling.csv", scaling_csv(results));
  write_file(o.output + "/time.svg", scaling_time_svg(results));
  write_file(o.output + "/efficiency.svg", scaling_efficiency_svg(results));
  write_file(o.output + "/prediction.svg", scaling_prediction_svg(results));
  fmt::print("{}written: {}/scaling.csv, time.svg, efficiency.svg, prediction.svg\n", scaling_table(results), o.output);
  const double tolerance = o.tolerance > 0 ? o.tolerance : deck.run.precision == "bf16" ? 2e-2 : 1e-3;
  for (const ScalingResult& result : results) {
    const double difference = loss_difference(results, result);
    if (difference <= tolerance) continue;
    fmt::print(stderr, "flanmoe-scaling: losses of {} differ by {:.3g} from those of the first layout; at most {:g}\n",
               folder_of(o, result.point), difference, tolerance);
    return 1;
  }
  return 0;
}

int study(const Options& o) {
  if (o.deck.empty() || o.output.empty()) usage_fail("expected a deck and --output FOLDER (see --help)");
  if (o.steps < 2) usage_fail("--steps: expected at least 2, found {}", o.steps);
  const bool checkpoints = o.study == "checkpoints";
  if (o.study != "strong" && o.study != "weak" && o.study != "both" && !checkpoints) {
    usage_fail("--study: expected strong, weak, both or checkpoints, found {}", o.study);
  }
  if (checkpoints && (o.steps < 8 || o.list || o.collect || o.point >= 0)) {
    usage_fail("--study=checkpoints: expected --steps of at least 8 and none of --list, --point, --collect");
  }
  silence_hdf5();
  const Deck deck = parse_deck(o.deck, o.overrides);
  const std::vector<ScalingPoint> points =
      scaling_points(deck, numbers_of(o.ranks, "ranks"), numbers_of(o.experts, "experts"), o.study != "weak",
                     o.study != "strong" && !checkpoints);
  if (o.list) {
    for (std::size_t i = 0; i < points.size(); ++i) {
      fmt::print("{} {} ranks {} rows {}\n", i, points[i].name(), points[i].ranks, points[i].rows);
    }
    return 0;
  }
  if (o.point >= int(points.size())) usage_fail("--point: expected at most {}, found {}", points.size() - 1, o.point);
  if (o.collect) return collect(o, deck, points);
  fs::create_directories(o.output);
  const std::string data = random_pairs_of(o, deck);
  constexpr std::int64_t kExamples = 512;
  if (deck.data.train.empty() && !fs::exists(data)) {
    const std::string aside = aside_of(data);
    write_random_pairs(aside, deck, kExamples);
    fs::rename(aside, data);
  }
  if (checkpoints) {
    for (const ScalingPoint& point : points) study_checkpoints(o, deck, point);
    return 0;
  }
  const auto run = [&](const ScalingPoint& point) {
    run_point(o, deck, point, folder_of(o, point), {"--checkpoint.every=0"});
  };
  if (o.point >= 0) {
    run(points[std::size_t(o.point)]);
    return 0;
  }
  for (const ScalingPoint& point : points) run(point);
  return collect(o, deck, points);
}

}  // namespace

int main(int argc, char** argv) {
  return flanmoe::run_tool("flanmoe-scaling", [&] {
    bool help = false;
    const Options options = parse(argc, argv, help);
    return help ? 0 : study(options);
  });
}
