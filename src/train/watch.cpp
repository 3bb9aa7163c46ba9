#include "train/watch.hpp"

#include <sys/ioctl.h>
#include <unistd.h>

#include <algorithm>
#include <charconv>
#include <chrono>
#include <cmath>
#include <filesystem>
#include <thread>

#include "base/error.hpp"
#include "parallel/stop.hpp"
#include "train/run_folder.hpp"

namespace flanmoe {
namespace {

constexpr std::string_view kShades = " .:-=+*#%@";  // from no load to three times the fair share
constexpr double kDarkest = 3.0;
constexpr std::string_view kHeights = "_.-=^";  // of the curve of losses, lowest first
constexpr char kNoNumber = '?';
constexpr int kNameWidth = 18;

std::string clock_text(double seconds) {
  const auto s = std::int64_t(seconds + 0.5);
  return fmt::format("{}:{:02}:{:02}", s / 3600, s / 60 % 60, s % 60);
}

std::size_t recent_count(std::size_t steps) {
  return std::min<std::size_t>(steps, std::clamp<std::size_t>(steps / 20, 1, 100));
}

/// Tokens per second and seconds per step of the last steps.
std::pair<double, double> recent_speed(const std::vector<StepRecord>& records) {
  const std::size_t count = recent_count(records.size());
  double tokens = 0, seconds = 0;
  for (std::size_t i = records.size() - count; i < records.size(); ++i) {
    tokens += double(records[i].tokens);
    seconds += records[i].step_seconds;
  }
  return {seconds > 0 ? tokens / seconds : 0, seconds / double(count)};
}

/// Mean loss of `columns` equal stretches of the run, as heights between the lowest and the highest.
std::string loss_curve(const std::vector<StepRecord>& records, int columns) {
  const auto n = std::min<std::size_t>(std::size_t(columns), records.size());
  std::vector<double> means(n, 0);
  for (std::size_t c = 0; c < n; ++c) {
    const std::size_t begin = c * records.size() / n, end = (c + 1) * records.size() / n;
    for (std::size_t i = begin; i < end; ++i) means[c] += records[i].loss / double(end - begin);
  }
  double low = INFINITY, high = -INFINITY;
  for (const double mean : means) {
    if (!std::isfinite(mean)) continue;
    low = std::min(low, mean);
    high = std::max(high, mean);
  }
  std::string curve;
  for (const double mean : means) {
    if (!std::isfinite(mean)) {
      curve += kNoNumber;
      continue;
    }
    const double share = high > low ? (mean - low) / (high - low) : 0;
    curve += kHeights[std::min(kHeights.size() - 1, std::size_t(share * double(kHeights.size())))];
  }
  return fmt::format("{:.4f} {} {:.4f}   (from {:.4f} to {:.4f})", means.front(), curve, means.back(), low, high);
}

/// One character per `group` experts: their mean load over the fair share.
std::string load_row(const std::vector<double>& load_E, std::size_t group) {
  std::string row;
  for (std::size_t e = 0; e < load_E.size(); e += group) {
    const std::size_t end = std::min(load_E.size(), e + group);
    double load = 0;
    for (std::size_t i = e; i < end; ++i) load += load_E[i] * double(load_E.size()) / double(end - e);
    const double shade = std::round(std::min(1.0, load / kDarkest) * double(kShades.size() - 1));
    row += kShades[std::size_t(shade)];
  }
  return row;
}

std::string experts_text(const std::vector<MoeLayerRecord>& layers, int width) {
  if (layers.empty()) return "";
  const std::size_t experts = layers.front().load_E.size();
  const auto room = std::size_t(std::max(8, width - kNameWidth - 36));
  const std::size_t group = (experts + room - 1) / room;
  std::string text =
      fmt::format("\nload of the experts in recent steps{}\n  '{}' none, '{}' fair, '{}' {:g} times and more\n",
                  group > 1 ? fmt::format(", {} experts a column", group) : "", kShades.front(),
                  kShades[kShades.size() / 3], kShades.back(), kDarkest);
  for (const MoeLayerRecord& layer : layers) {
    const double most = *std::max_element(layer.load_E.begin(), layer.load_E.end()) * double(layer.load_E.size());
    text += fmt::format("  {:<{}} [{}] most {:.2f}x  dropped {:.1f}%\n", layer.layer, kNameWidth,
                        load_row(layer.load_E, group), most, 100 * layer.drop_fraction);
  }
  return text;
}

std::int64_t steps_of(const std::string& deck, const std::string& value) {
  std::int64_t steps = 0;
  const auto [end, error] = std::from_chars(value.data(), value.data() + value.size(), steps);
  if (error != std::errc() || end != value.data() + value.size() || steps < 1) {
    usage_fail("{}: run.steps: expected a whole number at least 1, found {}", deck, value.empty() ? "nothing" : value);
  }
  return steps;
}

}  // namespace

bool is_running(const RunView& run) {
  constexpr double kLeastSeconds = 30, kSteps = 10;
  if (run.records.empty() || run.records.back().step >= run.steps) return false;
  return run.silent_seconds < std::max(kLeastSeconds, kSteps * recent_speed(run.records).second);
}

RunView read_run(const std::string& dir) {
  const RunPaths paths{dir};
  const std::string text = read_file(paths.deck());
  if (text.empty()) usage_fail("{}: expected a run folder, found no deck.resolved in it", dir);
  RunView run;
  run.dir = dir;
  for (const auto& [key, value] : deck_values(text)) {
    if (key == "run.steps") run.steps = steps_of(paths.deck(), value);
    if (key == "run.stage") run.stage = value;
  }
  if (run.steps == 0) usage_fail("{}: expected run.steps, found none", paths.deck());
  run.records = read_metrics(paths.metrics());
  std::error_code error;
  const auto written = std::filesystem::last_write_time(paths.metrics(), error);
  if (!error) {
    run.silent_seconds = std::chrono::duration<double>(std::filesystem::file_time_type::clock::now() - written).count();
  }
  return run;
}

std::vector<MoeLayerRecord> recent_layers(const std::vector<StepRecord>& records) {
  if (records.empty()) return {};
  const std::size_t count = recent_count(records.size());
  std::vector<MoeLayerRecord> mean = records.back().moe;
  const auto add = [&](double& to, double value) { to += value / double(count); };
  for (MoeLayerRecord& layer : mean) {
    std::fill(layer.load_E.begin(), layer.load_E.end(), 0.0);
    layer.copies_per_token = layer.drop_fraction = layer.unrouted_fraction = 0;
    layer.balance_loss = layer.z_loss = layer.router_entropy = 0;
  }
  for (std::size_t i = records.size() - count; i < records.size(); ++i) {
    if (records[i].moe.size() != mean.size()) continue;
    for (std::size_t l = 0; l < mean.size(); ++l) {
      const MoeLayerRecord& layer = records[i].moe[l];
      for (std::size_t e = 0; e < std::min(mean[l].load_E.size(), layer.load_E.size()); ++e) {
        add(mean[l].load_E[e], layer.load_E[e]);
      }
      add(mean[l].copies_per_token, layer.copies_per_token);
      add(mean[l].drop_fraction, layer.drop_fraction);
      add(mean[l].unrouted_fraction, layer.unrouted_fraction);
      add(mean[l].balance_loss, layer.balance_loss);
      add(mean[l].z_loss, layer.z_loss);
      add(mean[l].router_entropy, layer.router_entropy);
    }
  }
  return mean;
}

std::string run_text(const RunView& run, int width) {
  if (run.records.empty()) {
    return fmt::format("{}: {}, no step yet of {}\n", run.dir, run.stage, run.steps);
  }
  const StepRecord& last = run.records.back();
  const bool done = last.step >= run.steps;
  const auto [speed, step_seconds] = recent_speed(run.records);
  double elapsed = 0;
  for (const StepRecord& record : run.records) elapsed += record.step_seconds;
  const int bar = std::max(10, width - 40);
  const auto filled =
      int(double(bar) * std::min(1.0, double(last.step) / double(std::max<std::int64_t>(1, run.steps))));

  std::string text = fmt::format("{}: {}, {}\n", run.dir, run.stage,
                                 done              ? "finished"
                                 : is_running(run) ? "running"
                                                   : fmt::format("no step for {}", clock_text(run.silent_seconds)));
  text += fmt::format("step {}/{} [{}{}] {:.1f}%\n", last.step, run.steps, std::string(std::size_t(filled), '='),
                      std::string(std::size_t(bar - filled), ' '), 100.0 * double(last.step) / double(run.steps));
  text += fmt::format("loss      {}\n", loss_curve(run.records, std::max(10, width - 60)));
  text += fmt::format("last step loss {:.4f}, accuracy {:.3f}, grad norm {:.3g}, rate {:.3g}\n", last.loss,
                      last.accuracy, last.grad_norm, last.learning_rate);
  text += fmt::format("speed     {:.0f} tokens/s, {:.3g} s a step, {} tokens so far\n", speed, step_seconds,
                      last.tokens_seen);
  text += fmt::format("time      {} in steps", clock_text(elapsed));
  if (!done) text += fmt::format(", {} left", clock_text(step_seconds * double(run.steps - last.step)));
  return text + "\n" + experts_text(recent_layers(run.records), width);
}

void watch(const std::string& dir) {
  constexpr auto kEvery = std::chrono::seconds(2);
  constexpr int kPlainWidth = 100;
  if (isatty(STDOUT_FILENO) == 0) {
    fmt::print("{}", run_text(read_run(dir), kPlainWidth));
    return;
  }
  for (;;) {
    const RunView run = read_run(dir);
    winsize size{};
    const bool known = ioctl(STDOUT_FILENO, TIOCGWINSZ, &size) == 0 && size.ws_col > 0;
    fmt::print("\033[H\033[2J{}", run_text(run, known ? size.ws_col : kPlainWidth));  // home, clear
    std::fflush(stdout);
    if (stop_signal() != nullptr || (!run.records.empty() && run.records.back().step >= run.steps)) return;
    std::this_thread::sleep_for(kEvery);
  }
}

}  // namespace flanmoe
