// One run as one HTML page: figures and plots inside, nothing from the network.
#pragma once

#include <string>

namespace flanmoe {

/// Whether the folder has the metrics of a training.
bool has_training(const std::string& dir);
/// The page of a run folder, whether its run has ended or not. Throws UsageError when it has no run.
std::string run_report_html(const std::string& dir);

}  // namespace flanmoe
