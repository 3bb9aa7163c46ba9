#include "train/scaling.hpp"

#include <algorithm>
#include <cmath>
#include <nlohmann/json.hpp>
#include <random>

#include "base/error.hpp"
#include "data/shard.hpp"
#include "evaluate/chart.hpp"
#include "tensor/philox.hpp"
#include "train/metrics.hpp"
#include "train/run_folder.hpp"

namespace flanmoe {
namespace {

using nlohmann::json;

double median(std::vector<double> values) {
  if (values.empty()) return 0;
  std::sort(values.begin(), values.end());
  const std::size_t middle = values.size() / 2;
  return values.size() % 2 == 1 ? values[middle] : (values[middle - 1] + values[middle]) / 2;
}

/// The fastest result of a study with so many ranks; ranks 0: with the fewest.
const ScalingResult* fastest(const std::vector<ScalingResult>& results, bool ScalingPoint::*study, int ranks) {
  if (ranks == 0) {
    for (const ScalingResult& result : results) {
      if (result.point.*study && (ranks == 0 || result.point.ranks < ranks)) ranks = result.point.ranks;
    }
  }
  const ScalingResult* best = nullptr;
  for (const ScalingResult& result : results) {
    const bool counts = result.point.*study && result.point.ranks == ranks;
    if (counts && (best == nullptr || result.step_seconds < best->step_seconds)) best = &result;
  }
  return best;
}

Curve efficiency_curve(const std::vector<ScalingResult>& results, const std::string& name, bool ScalingPoint::*study,
                       double (*efficiency)(const std::vector<ScalingResult>&, const ScalingResult&)) {
  Curve curve{name, {}, true};
  for (const ScalingResult& result : results) {
    if (fastest(results, study, result.point.ranks) == &result && result.point.*study) {
      curve.points.emplace_back(result.point.ranks, efficiency(results, result));
    }
  }
  std::sort(curve.points.begin(), curve.points.end());
  return curve;
}

/// Names of the parts that any result has, in alphabetical order.
std::vector<std::string> parts_of(const std::vector<ScalingResult>& results) {
  std::map<std::string, double> all;
  for (const ScalingResult& result : results) all.insert(result.measured_parts.begin(), result.measured_parts.end());
  std::vector<std::string> names;
  for (const auto& [name, seconds] : all) names.push_back(name);
  return names;
}

double part(const std::map<std::string, double>& parts, const std::string& name) {
  const auto at = parts.find(name);
  return at == parts.end() ? 0 : at->second;
}

}  // namespace

std::string ScalingPoint::name() const { return fmt::format("{}x{}_rows{}", ranks / expert, expert, rows); }

std::vector<ScalingPoint> scaling_points(const Deck& deck, std::vector<int> ranks, const std::vector<int>& experts,
                                         bool strong, bool weak) {
  if (ranks.empty()) usage_fail("a study needs at least one number of ranks");
  std::sort(ranks.begin(), ranks.end());
  ranks.erase(std::unique(ranks.begin(), ranks.end()), ranks.end());
  const bool sparse = deck.moe.router != "none";
  std::vector<ScalingPoint> points;
  for (const int n : ranks) {
    for (const bool weakly : {false, true}) {
      if (!(weakly ? weak : strong)) continue;
      const std::int64_t rows = weakly ? deck.batch.rows * n / ranks.front() : deck.batch.rows;
      if (rows % n != 0) usage_fail("batch.rows = {} does not divide by {} ranks", rows, n);
      for (int expert = 1; expert <= n; ++expert) {
        if (n % expert != 0 || (sparse ? deck.moe.experts % expert != 0 : expert > 1)) continue;
        if (!experts.empty() && std::find(experts.begin(), experts.end(), expert) == experts.end()) continue;
        const auto same = std::find_if(points.begin(), points.end(), [&](const ScalingPoint& point) {
          return point.ranks == n && point.expert == expert && point.rows == rows;
        });
        ScalingPoint& point = same != points.end() ? *same : points.emplace_back(ScalingPoint{n, expert, rows});
        (weakly ? point.weak : point.strong) = true;
      }
    }
  }
  if (points.empty()) usage_fail("no split of these ranks has one of these expert degrees");
  return points;
}

std::optional<ScalingResult> read_scaling_result(const std::string& dir, const ScalingPoint& point) {
  const RunPaths paths{dir};
  const json summary = json::parse(read_file(paths.summary()), nullptr, false);
  if (!summary.is_object()) return std::nullopt;
  ScalingResult result;
  result.point = point;
  std::vector<double> seconds;
  double tokens = 0;
  for (const StepRecord& record : read_metrics(paths.metrics())) {
    if (!result.losses.empty()) {
      seconds.push_back(record.step_seconds);
      tokens += double(record.tokens);
    }
    result.losses.push_back(record.loss);
  }
  if (seconds.empty()) fail("{}: expected at least two steps, to leave out the first one", dir);
  result.step_seconds = median(seconds);
  result.tokens_per_second = tokens / double(seconds.size()) / result.step_seconds;
  for (const auto& [key, value] :
       {std::pair{"announced_mib_per_rank", &result.announced_mib}, {"peak_resident_mib_per_rank", &result.peak_mib}}) {
    for (const json& mib : summary.at("memory").at(key)) *value = std::max(*value, mib.get<double>());
  }
  const json prediction = summary.at("last_session").value("prediction", json::object());
  if (!prediction.contains("part_seconds")) return result;
  result.predicted_seconds = prediction.at("predicted_step_seconds");
  for (const auto& [name, times] : prediction.at("part_seconds").items()) {
    result.measured_parts[name] = times.at("measured");
    result.predicted_parts[name] = times.at("predicted");
  }
  return result;
}

double strong_efficiency(const std::vector<ScalingResult>& results, const ScalingResult& result) {
  const ScalingResult* first = fastest(results, &ScalingPoint::strong, 0);
  if (first == nullptr) return 0;
  return first->step_seconds * first->point.ranks / (result.step_seconds * result.point.ranks);
}

double weak_efficiency(const std::vector<ScalingResult>& results, const ScalingResult& result) {
  const ScalingResult* first = fastest(results, &ScalingPoint::weak, 0);
  return first == nullptr ? 0 : first->step_seconds / result.step_seconds;
}

double loss_difference(const std::vector<ScalingResult>& results, const ScalingResult& result) {
  const auto first = std::find_if(results.begin(), results.end(),
                                  [&](const ScalingResult& other) { return other.point.rows == result.point.rows; });
  if (first == results.end()) return 0;
  if (first->losses.size() != result.losses.size()) return INFINITY;
  double most = 0;
  for (std::size_t i = 0; i < result.losses.size(); ++i) {
    const double difference = std::abs(result.losses[i] - first->losses[i]) / std::abs(first->losses[i]);
    if (!(difference <= most)) most = difference;  // not a number is a difference too
  }
  return most;
}

std::string scaling_csv(const std::vector<ScalingResult>& results) {
  const std::vector<std::string> parts = parts_of(results);
  std::string csv =
      "data,expert,ranks,rows,step_seconds,predicted_seconds,tokens_per_second,strong_efficiency,weak_efficiency,"
      "loss_difference,announced_mib,peak_mib";
  for (const std::string& name : parts) csv += fmt::format(",{0}_seconds,predicted_{0}_seconds", name);
  csv += "\n";
  for (const ScalingResult& result : results) {
    const ScalingPoint& p = result.point;
    csv += fmt::format("{},{},{},{},{:.6g},{:.6g},{:.6g},{},{},{:.3g},{:.1f},{:.1f}", p.ranks / p.expert, p.expert,
                       p.ranks, p.rows, result.step_seconds, result.predicted_seconds, result.tokens_per_second,
                       p.strong ? fmt::format("{:.4f}", strong_efficiency(results, result)) : "",
                       p.weak ? fmt::format("{:.4f}", weak_efficiency(results, result)) : "",
                       loss_difference(results, result), result.announced_mib, result.peak_mib);
    for (const std::string& name : parts) {
      csv += fmt::format(",{:.6g},{:.6g}", part(result.measured_parts, name), part(result.predicted_parts, name));
    }
    csv += "\n";
  }
  return csv;
}

std::string scaling_table(const std::vector<ScalingResult>& results) {
  std::string text = fmt::format("{:>6} {:>6} {:>6} {:>10} {:>10} {:>6} {:>12} {:>7} {:>7} {:>10}\n", "data", "expert",
                                 "rows", "step, s", "predicted", "ratio", "tokens/s", "strong", "weak", "losses");
  for (const ScalingResult& result : results) {
    const ScalingPoint& p = result.point;
    const bool predicted = result.predicted_seconds > 0;
    text += fmt::format(
        "{:>6} {:>6} {:>6} {:>10.4g} {:>10} {:>6} {:>12.5g} {:>7} {:>7} {:>10.2g}\n", p.ranks / p.expert, p.expert,
        p.rows, result.step_seconds, predicted ? fmt::format("{:.4g}", result.predicted_seconds) : "-",
        predicted ? fmt::format("{:.2f}", result.predicted_seconds / result.step_seconds) : "-",
        result.tokens_per_second, p.strong ? fmt::format("{:.1f}%", 100 * strong_efficiency(results, result)) : "-",
        p.weak ? fmt::format("{:.1f}%", 100 * weak_efficiency(results, result)) : "-",
        loss_difference(results, result));
  }
  return text;
}

std::string scaling_time_svg(const std::vector<ScalingResult>& results) {
  BarChart chart{"Time of a step (data x expert, rows of the batch)", "s", "predicted", parts_of(results), {}};
  for (const ScalingResult& result : results) {
    StackedBar bar{fmt::format("{} x {}, {} rows", result.point.ranks / result.point.expert, result.point.expert,
                               result.point.rows),
                   {},
                   {}};
    for (const std::string& name : chart.parts) bar.parts.push_back(part(result.measured_parts, name));
    if (result.predicted_seconds > 0) bar.marker = result.predicted_seconds;
    chart.bars.push_back(bar);
  }
  return bar_chart(chart);
}

std::string scaling_efficiency_svg(const std::vector<ScalingResult>& results) {
  CurveChart chart{"Efficiency of the fastest split", "ranks", "against the fewest ranks", {}, 0, 1.1};
  chart.curves.push_back(efficiency_curve(results, "strong", &ScalingPoint::strong, strong_efficiency));
  chart.curves.push_back(efficiency_curve(results, "weak", &ScalingPoint::weak, weak_efficiency));
  return curve_chart(chart);
}

std::string scaling_prediction_svg(const std::vector<ScalingResult>& results) {
  Curve measured{"predicted", {}, true}, equal{"equal", {{0, 0}}, false};
  for (const ScalingResult& result : results) {
    if (result.predicted_seconds <= 0) continue;
    measured.points.emplace_back(result.step_seconds, result.predicted_seconds);
    const double most = std::max(result.step_seconds, result.predicted_seconds);
    if (most > equal.points.back().first) equal.points = {{0, 0}, {most, most}};
  }
  std::sort(measured.points.begin(), measured.points.end());
  return curve_chart(
      {"Predicted and measured time of a step", "measured, s", "predicted, s", {measured, equal}, 0, {}});
}

std::string random_pairs_name(const Deck& deck) {
  return fmt::format("random_{}_{}_{}_{:08x}.h5", deck.model.vocabulary, deck.batch.input_length,
                     deck.batch.target_length, hash_name(deck.data.split) >> 32U);
}

void write_random_pairs(const std::string& path, const Deck& deck, std::int64_t examples) {
  std::mt19937 random(1);
  TokenizerIdentity tokenizer;
  tokenizer.fingerprint = "random pairs";
  tokenizer.vocabulary = std::int32_t(deck.model.vocabulary);
  ShardWriter writer(path, tokenizer);
  for (std::int64_t i = 0; i < examples; ++i) {
    Example example;
    example.task = "random";
    example.split = deck.data.split;
    example.variant = "random";
    const auto fill = [&](TokenIds& ids, std::int64_t count) {
      for (std::int64_t t = 0; t < count; ++t) {
        ids.push_back(std::int32_t(3 + random() % std::uint64_t(deck.model.vocabulary - 3)));
      }
    };
    fill(example.input, deck.batch.input_length - 1);  // the end of a text is a token too
    fill(example.target, deck.batch.target_length - 1);
    writer.add(example);
  }
  writer.finish();
}

}  // namespace flanmoe
