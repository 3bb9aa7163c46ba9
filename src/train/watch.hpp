// A run as text, while it runs or after: loss, speed, time left, load of the experts, drops.
#pragma once

#include <string>
#include <vector>

#include "train/metrics.hpp"

namespace flanmoe {

/// What the files of a run folder say.
struct RunView {
  std::string dir, stage;
  std::int64_t steps = 0;     // of the whole run
  double silent_seconds = 0;  // since the last step was written
  std::vector<StepRecord> records;
};

/// Whether steps still come: the last one is not longer ago than ten steps or half a minute.
bool is_running(const RunView& run);

/// Throws UsageError when the folder has no run.
RunView read_run(const std::string& dir);

/// Mean of the last steps, which are about a twentieth of them and at least 1 and at most 100.
std::vector<MoeLayerRecord> recent_layers(const std::vector<StepRecord>& records);

/// `width` columns at most where it is 80 and more and the name of the folder leaves room for the state; the map of
/// loads has a row a layer and a column an expert (or a few neighbours).
std::string run_text(const RunView& run, int width);

/// `flanmoe watch RUN`: draws the run again and again until its last step where standard output is a terminal, once
/// where not.
void watch(const std::string& dir);

}  // namespace flanmoe
