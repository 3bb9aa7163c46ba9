#include "train/metrics.hpp"

#include <algorithm>
#include <cmath>
#include <deque>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>

#include "base/error.hpp"

namespace flanmoe {
namespace {

using nlohmann::json;
using nlohmann::ordered_json;

/// Bytes of the lines that are whole and not later than last_step.
std::uintmax_t kept_bytes(const std::string& path, std::int64_t last_step) {
  std::ifstream in(path, std::ios::binary);
  std::uintmax_t bytes = 0;
  for (std::string line; std::getline(in, line) && !in.eof();) {  // at eof the line has no newline: unfinished
    const json record = json::parse(line, nullptr, false);
    if (!record.is_object() || record.value("step", std::int64_t{0}) > last_step || !record.contains("step")) break;
    bytes += line.size() + 1;
  }
  return bytes;
}

}  // namespace

std::string to_json_line(const StepRecord& record) {
  ordered_json line;
  line["step"] = record.step;
  line["loss"] = record.loss;
  line["grad_norm"] = record.grad_norm;
  line["learning_rate"] = record.learning_rate;
  line["tokens"] = record.tokens;
  line["tokens_per_second"] = record.tokens_per_second();
  line["step_seconds"] = record.step_seconds;
  line["tokens_seen"] = record.tokens_seen;
  line["accuracy"] = record.accuracy;
  line["z_loss"] = record.z_loss;
  line["moe"] = ordered_json::object();
  for (const MoeLayerRecord& layer : record.moe) {
    line["moe"][layer.layer] = {{"load", layer.load_E},
                                {"copies_per_token", layer.copies_per_token},
                                {"drop_fraction", layer.drop_fraction},
                                {"unrouted_fraction", layer.unrouted_fraction},
                                {"balance_loss", layer.balance_loss},
                                {"z_loss", layer.z_loss},
                                {"router_entropy", layer.router_entropy}};
  }
  return line.dump();
}

namespace {

/// JSON has no NaN and no infinity: both are written as null.
double number_of(const ordered_json& value) { return value.is_null() ? std::nan("") : value.get<double>(); }

/// What an older file does not have is 0.
double number(const ordered_json& object, const char* key) {
  return object.contains(key) ? number_of(object.at(key)) : 0.0;
}

StepRecord record_of(const ordered_json& line) {
  StepRecord record;
  record.step = line.at("step");
  record.loss = number_of(line.at("loss"));
  record.grad_norm = number(line, "grad_norm");
  record.learning_rate = number(line, "learning_rate");
  record.tokens = line.value("tokens", std::int64_t{0});
  record.step_seconds = number(line, "step_seconds");
  record.tokens_seen = line.value("tokens_seen", std::int64_t{0});
  record.accuracy = number(line, "accuracy");
  record.z_loss = number(line, "z_loss");
  if (!line.contains("moe")) return record;
  for (const auto& [name, layer] : line.at("moe").items()) {
    std::vector<double> load_E;
    for (const ordered_json& load : layer.at("load")) load_E.push_back(number_of(load));
    record.moe.push_back({.layer = name,
                          .load_E = std::move(load_E),
                          .copies_per_token = number(layer, "copies_per_token"),
                          .drop_fraction = number(layer, "drop_fraction"),
                          .unrouted_fraction = number(layer, "unrouted_fraction"),
                          .balance_loss = number(layer, "balance_loss"),
                          .z_loss = number(layer, "z_loss"),
                          .router_entropy = number(layer, "router_entropy")});
  }
  return record;
}

}  // namespace

std::vector<StepRecord> read_metrics(const std::string& path) {
  std::vector<StepRecord> records;
  std::ifstream in(path, std::ios::binary);
  for (std::string line; std::getline(in, line) && !in.eof();) {  // at eof the line is still being written
    try {
      records.push_back(record_of(ordered_json::parse(line)));
    } catch (const json::exception& error) {
      fail("{}:{}: expected the record of a step: {}", path, records.size() + 1, error.what());
    }
  }
  return records;
}

MetricsFile::MetricsFile(const std::string& path, std::int64_t last_step) : file_(path) {
  std::filesystem::resize_file(path, kept_bytes(path, last_step));
}

void MetricsFile::write_waiting() {
  if (waiting_.empty()) return;
  file_.append(waiting_);
  waiting_.clear();
}

void MetricsFile::append(const StepRecord& record) {
  waiting_ += to_json_line(record);
  waiting_ += '\n';
  write_waiting();
}

void MetricsFile::flush_to_disk() {
  write_waiting();
  file_.flush_to_disk();
}

std::vector<double> recent_losses_and_norms(const std::string& path, std::size_t steps) {
  std::ifstream in(path);
  std::deque<std::string> last;
  for (std::string line; std::getline(in, line);) {
    last.push_back(std::move(line));
    if (last.size() > steps) last.pop_front();
  }
  std::vector<double> values;
  for (const std::string& line : last) {
    const json record = json::parse(line, nullptr, false);
    if (!record.is_object()) fail("{}: expected one JSON object a line, found \"{}\"", path, line);
    values.push_back(record.at("loss"));
    values.push_back(record.at("grad_norm"));
  }
  return values;
}

RunTotals read_totals(const std::string& path) {
  std::vector<double> losses, accuracies;
  RunTotals totals;
  for (const StepRecord& record : read_metrics(path)) {
    losses.push_back(record.loss);
    accuracies.push_back(record.accuracy);
    totals.tokens += record.tokens;
    totals.seconds += record.step_seconds;
  }
  if (losses.empty()) return totals;
  const std::size_t tenth = std::max<std::size_t>(1, losses.size() / 10);
  for (std::size_t i = losses.size() - tenth; i < losses.size(); ++i) {
    totals.mean_loss_last_tenth += losses[i] / double(tenth);
    totals.mean_accuracy_last_tenth += accuracies[i] / double(tenth);
  }
  totals.first_loss = losses.front();
  totals.final_loss = losses.back();
  return totals;
}

}  // namespace flanmoe
