#include "stage/arguments.hpp"

#include <array>
#include <cstdlib>

#include "base/error.hpp"
#include "model/freeze.hpp"
#include "stage/version.hpp"
#include "train/model_size.hpp"
#include "train/plan/plan.hpp"

namespace flanmoe {
namespace {

constexpr const char* kUsage =
    "flanmoe DECK [--section.key=value ...]   run the stage of the deck; start it with mpirun or srun for several "
    "ranks\n"
    "flanmoe DECK [...] --check               say how big the model is and whether the deck is right, without running\n"
    "flanmoe DECK [...] --print               print the deck with every default, preset and override filled in\n"
    "flanmoe selfcheck DECK [...]             train a few steps on 1, 2, 4, ... and all ranks that mpirun starts, with "
    "expert degrees 1, 2, 4, ..., and compare\n"
    "flanmoe calibrate [FILE]                 measure this machine for the plan stage, with all ranks that mpirun "
    "starts\n"
    "flanmoe watch RUN                        show a run folder: loss, speed, time left, load of the experts; goes on "
    "until the run ends\n"
    "flanmoe --help [KEY]                     this text and all keys, or one key\n"
    "flanmoe --version                        what this program was built with\n"
    "\n"
    "Exit codes: 0 done, 1 error, 2 wrong deck or usage, 75 stopped early (the same command goes on).\n"
    "SIGUSR1 or SIGTERM to any rank ends a training after its step, with a checkpoint, and an evaluation after its "
    "round;\n"
    "a second signal ends it at once.\n";

std::optional<int> integer_of(const char* variable) {
  const char* text = std::getenv(variable);
  if (text == nullptr || *text == '\0') return std::nullopt;
  char* end = nullptr;
  const long value = std::strtol(text, &end, 10);
  if (*end != '\0') return std::nullopt;
  return int(value);
}

std::optional<Action> flag_of(const std::string& argument) {
  if (argument == "--check") return Action::check;
  if (argument == "--print") return Action::print;
  if (argument == "--help" || argument == "-h") return Action::help;
  if (argument == "--version") return Action::version;
  return std::nullopt;
}

Arguments parse_command(const std::string& command, const std::vector<std::string>& words) {
  Arguments arguments;
  arguments.action = command == "watch" ? Action::watch : Action::calibrate;
  const bool needs_one = arguments.action == Action::watch;
  const std::string expected = needs_one ? "one run folder" : "one file to write, or none";
  if (words.size() > 1 || (needs_one && words.empty())) {
    usage_fail("{}: expected {}, found {} words", command, expected, words.size());
  }
  if (!words.empty()) arguments.file = words.front();
  if (arguments.file.starts_with("-")) usage_fail("{}: expected {}, found {}", command, expected, arguments.file);
  return arguments;
}

}  // namespace

Arguments parse_arguments(int argc, const char* const* argv) {
  Arguments arguments;
  const std::string command = argc > 1 ? argv[1] : "";
  if (command == "calibrate" || command == "watch") return parse_command(command, {argv + 2, argv + argc});
  if (command == "selfcheck") arguments.action = Action::selfcheck;
  for (int i = command == "selfcheck" ? 2 : 1; i < argc; ++i) {
    const std::string argument = argv[i];
    if (const auto action = flag_of(argument)) {
      if (arguments.action != Action::run && arguments.action != *action) {
        usage_fail("{}: expected one of --check, --print, --help and --version, found two", argument);
      }
      arguments.action = *action;
    } else if (argument.starts_with("-")) {
      arguments.overrides.push_back(argument);
    } else if (arguments.action == Action::help && arguments.help_key.empty()) {
      arguments.help_key = argument;
    } else if (arguments.deck.empty()) {
      arguments.deck = argument;
    } else {
      usage_fail("{}: expected one deck, found {} before; an override is written --section.key=value", argument,
                 arguments.deck);
    }
  }
  const bool needs_deck = arguments.action != Action::help && arguments.action != Action::version;
  if (needs_deck && arguments.deck.empty()) usage_fail("expected a deck\n\n{}", kUsage);
  return arguments;
}

Launch launch_of_environment() {
  for (const auto& [size, rank] :
       std::array<std::array<const char*, 2>, 3>{{{"OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_RANK"},
                                                  {"PMI_SIZE", "PMI_RANK"},
                                                  {"SLURM_STEP_NUM_TASKS", "SLURM_PROCID"}}}) {
    const auto ranks = integer_of(size), own = integer_of(rank);
    if (ranks && own) return {.rank = *own, .size = *ranks};
  }
  return {};
}

bool needs_ranks(const Arguments& arguments) {
  if (arguments.action == Action::selfcheck) return true;
  if (arguments.action != Action::run) return arguments.action == Action::calibrate;
  try {
    return parse_deck(arguments.deck, arguments.overrides).run.stage != "plan";
  } catch (const UsageError&) {
    return true;  // all ranks read the deck and refuse it together
  }
}

std::string answer(const Arguments& arguments) {
  if (arguments.action == Action::version) return version_text();
  if (arguments.action == Action::help) {
    return arguments.help_key.empty() ? fmt::format("{}\n{}", kUsage, describe_keys(""))
                                      : describe_keys(arguments.help_key);
  }
  const Deck deck = parse_deck(arguments.deck, arguments.overrides);
  if (arguments.action == Action::run) return plan_report(deck);
  if (arguments.action == Action::print) return print_deck(deck);
  return describe_size(deck);
}

std::string verdict(const Arguments& arguments, const Launch& launch) {
  const Deck deck = parse_deck(arguments.deck, arguments.overrides);
  check_deck(deck, launch.size, freeze_problems(deck));
  return fmt::format("{}: right{}\n", arguments.deck,
                     launch.size > 0 ? fmt::format(" for {} ranks", launch.size)
                                     : "; start the check with mpirun -n RANKS to check the layout too");
}

}  // namespace flanmoe
