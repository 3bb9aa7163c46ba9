// metrics.jsonl: what every step did, one JSON object a line.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "base/line_file.hpp"

namespace flanmoe {

/// One sparse layer in one step, over the whole batch.
struct MoeLayerRecord {
  std::string layer;
  std::vector<double> load_E;           // share of the choices per expert, before capacity; sums to 1
  double copies_per_token = 0;          // experts that a token got, on average
  double drop_fraction = 0;             // choices that found no slot
  double unrouted_fraction = 0;         // tokens that no expert got
  double balance_loss = 0, z_loss = 0;  // before their coefficients
  double router_entropy = 0;            // nats per token
};

struct StepRecord {
  std::int64_t step = 0;  // optimizer steps completed, this one included
  double loss = 0;        // nats per target token, without auxiliary losses
  double z_loss = 0;      // mean over target tokens of model.z_loss * (log Z)^2
  double accuracy = 0;    // share of target tokens that were the most likely ones
  double grad_norm = 0;   // before clipping
  double learning_rate = 0;
  std::int64_t tokens = 0;       // of this step: encoder and target tokens
  std::int64_t tokens_seen = 0;  // since step 1
  double step_seconds = 0;
  std::vector<MoeLayerRecord> moe;

  double tokens_per_second() const { return double(tokens) / step_seconds; }
};

/// The record as one line of JSON; every number reads back to the same bits.
std::string to_json_line(const StepRecord& record);
/// All whole lines of a metrics file, which may be growing; none where there is no file. Throws Error on a line that is
/// no record.
std::vector<StepRecord> read_metrics(const std::string& path);

/// The file of one run; rank 0 only.
class MetricsFile {
 public:
  /// Opens for appending after the line of step `last_step`: later lines, and a line that a killed run left unfinished,
  /// are cut, so that no step appears twice.
  MetricsFile(const std::string& path, std::int64_t last_step);
  /// Adds a line and hands it to the operating system at once. Throws Error when there is no room; then the file ends
  /// with a whole line, and this one is written before the next one.
  void append(const StepRecord& record);
  /// Waits until all lines are on the disk. Throws Error when one cannot be written.
  void flush_to_disk();

 private:
  void write_waiting();
  LineFile file_;
  std::string waiting_;  // lines for which there was no room
};

/// Loss and norm, in turn, of the last `steps` steps in a metrics file, in order.
std::vector<double> recent_losses_and_norms(const std::string& path, std::size_t steps);

/// A whole run, over all its restarts.
struct RunTotals {
  std::int64_t tokens = 0;
  double first_loss = 0, final_loss = 0;
  double mean_loss_last_tenth = 0, mean_accuracy_last_tenth = 0;  // of the last 10% of the steps, one at least
  double seconds = 0;                                             // sum of step_seconds
};
RunTotals read_totals(const std::string& path);

}  // namespace flanmoe
