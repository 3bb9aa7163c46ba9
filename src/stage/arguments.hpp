// The command line, and the questions that it answers without ranks.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "deck/deck.hpp"

namespace flanmoe {

enum class Action { run, check, print, help, version, calibrate, watch, selfcheck };

struct Arguments {
  Action action = Action::run;
  std::string deck;                    // path
  std::vector<std::string> overrides;  // "--section.key=value"
  std::string help_key;                // of --help KEY; may be empty
  std::string file;                    // of calibrate FILE, may be empty; of watch RUN, the folder
};

/// Throws UsageError on what is no flag, deck or override.
Arguments parse_arguments(int argc, const char* const* argv);

/// What the launcher says about this process, before MPI starts.
struct Launch {
  int rank = 0;
  int size = 0;  // 0: started without a launcher
};
Launch launch_of_environment();

/// Whether MPI must be started: for training, measuring, checking layouts and calibrating, not for questions and plans.
bool needs_ranks(const Arguments& arguments);

/// The text that answers --help, --version, --print, --check (the size of the model) and the plan stage. Writes
/// nothing. Throws UsageError.
std::string answer(const Arguments& arguments);
/// The second answer to --check: that the deck is right, on the launcher's ranks where there is one. Throws UsageError.
std::string verdict(const Arguments& arguments, const Launch& launch);

}  // namespace flanmoe
