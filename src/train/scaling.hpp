// A scaling study: the same training on several layouts, with the batch of the deck (strong) and with the rows of the
// deck for as many ranks as the smallest layout has (weak).
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "deck/deck.hpp"

namespace flanmoe {

struct ScalingPoint {
  int ranks = 1, expert = 1;
  std::int64_t rows = 0;  // of the batch
  bool strong = false, weak = false;
  std::string name() const;
};

/// All splits of every number of ranks into data x expert (or those of `experts` only), in the order in which they run.
/// Throws UsageError when the rows of the deck cannot be shared out.
std::vector<ScalingPoint> scaling_points(const Deck& deck, std::vector<int> ranks, const std::vector<int>& experts,
                                         bool strong, bool weak);

struct ScalingResult {
  ScalingPoint point;
  double step_seconds = 0;  // median, without the first step
  double tokens_per_second = 0;
  double predicted_seconds = 0;                                   // 0: not predicted
  std::map<std::string, double> measured_parts, predicted_parts;  // s a step
  std::vector<double> losses;
  double announced_mib = 0, peak_mib = 0;  // of the fullest rank
};

/// What the run of a point left in its folder; nothing where it did not end.
std::optional<ScalingResult> read_scaling_result(const std::string& dir, const ScalingPoint& point);

/// Against the fewest ranks of the same study: strong t1 n1 / (t n), weak t1 / t; the fastest split of each counts.
double strong_efficiency(const std::vector<ScalingResult>& results, const ScalingResult& result);
double weak_efficiency(const std::vector<ScalingResult>& results, const ScalingResult& result);

/// Largest relative difference of a step's loss from that of the first result with the same batch.
double loss_difference(const std::vector<ScalingResult>& results, const ScalingResult& result);

std::string scaling_csv(const std::vector<ScalingResult>& results);
std::string scaling_table(const std::vector<ScalingResult>& results);
/// Time of a step by part with the predicted time as a line; efficiencies; predicted against measured.
std::string scaling_time_svg(const std::vector<ScalingResult>& results);
std::string scaling_efficiency_svg(const std::vector<ScalingResult>& results);
std::string scaling_prediction_svg(const std::vector<ScalingResult>& results);

/// What a file of random pairs is called; other lengths, another vocabulary or split give another name.
std::string random_pairs_name(const Deck& deck);
/// Pairs of random tokens that fill the rows of the deck: what speed is measured with where no data are named.
void write_random_pairs(const std::string& path, const Deck& deck, std::int64_t examples);

}  // namespace flanmoe
