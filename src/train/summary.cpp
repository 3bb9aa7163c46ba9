#include "train/summary.hpp"

#include <nlohmann/json.hpp>

#include "base/log.hpp"
#include "train/resources.hpp"
#include "train/run_folder.hpp"

namespace flanmoe {
namespace {

using nlohmann::ordered_json;

constexpr std::size_t kParts = std::size_t(Part::count);

ordered_json speed_json(const Deck& deck, const SessionFacts& facts) {
  const TrainingFlops flops = training_flops(deck.model, deck.moe, facts.work);
  const double per_second = facts.step_seconds > 0 ? flops.total() / facts.step_seconds : 0;
  ordered_json speed;
  speed["steps"] = facts.steps;
  speed["seconds"] = facts.step_seconds;
  speed["tokens_per_second"] = facts.step_seconds > 0 ? double(facts.tokens) / facts.step_seconds : 0;
  speed["flops_per_token"] = facts.tokens > 0 ? flops.total() / double(facts.tokens) : 0;
  speed["flops_per_second"] = per_second;
  if (facts.roof_flops_per_second > 0) {
    speed["roof_flops_per_second"] = facts.roof_flops_per_second;
    speed["share_of_roof"] = per_second / facts.roof_flops_per_second;
  }
  for (const auto& [name, part] : {std::pair{"encoder", flops.encoder},
                                   {"decoder", flops.decoder},
                                   {"experts", flops.experts},
                                   {"attention", flops.attention},
                                   {"logits", flops.logits}}) {
    speed["share_of_flops"][name] = flops.total() > 0 ? part / flops.total() : 0;
  }
  return speed;
}

/// One line: predicted against measured.
void log_prediction(const ordered_json& summary) {
  const ordered_json& session = summary["last_session"];
  if (!session.contains("prediction")) return;
  const ordered_json& prediction = session["prediction"];
  std::string text =
      fmt::format("memory {:.1f} against {:.1f} MiB", summary["memory"]["announced_mib_per_rank"][0].get<double>(),
                  summary["memory"]["peak_resident_mib_per_rank"][0].get<double>());
  if (prediction.contains("predicted_step_seconds")) {
    text += fmt::format(", step {:.4g} against {:.4g} s", prediction["predicted_step_seconds"].get<double>(),
                        prediction["measured_step_seconds"].get<double>());
  }
  double predicted = 0, measured = 0;
  for (const auto& collective : prediction["collectives_of_rank_0_per_step"]) {
    predicted += collective["predicted_bytes"].get<double>();
    measured += collective["measured_bytes"].get<double>();
  }
  if (measured > 0) text += fmt::format(", bytes to other ranks a step {:.0f} against {:.0f}", predicted, measured);
  log_info("predicted against measured on rank 0: {}", text);
}

ordered_json data_wait_json(const SessionFacts& facts, double seconds) {
  ordered_json wait;
  wait["steps"] = facts.data_waits;
  wait["seconds"] = seconds;
  wait["share"] = facts.step_seconds > 0 ? seconds / facts.step_seconds : 0;
  return wait;
}

ordered_json checkpoints_json(const SaveTotals& saves) {
  ordered_json checkpoints;
  checkpoints["count"] = saves.count;
  checkpoints["bytes"] = saves.bytes;
  checkpoints["seconds"] = saves.seconds;
  checkpoints["stall_seconds"] = saves.stall_seconds;
  checkpoints["longest_stall_seconds"] = saves.longest_stall_seconds;
  return checkpoints;
}

}  // namespace

void write_summary(const std::string& path, const std::string& metrics_path, const Deck& deck,
                   const SessionFacts& facts, const StepPrediction& prediction, const Communicator& world) {
  std::array<double, kParts> parts = part_seconds();
  std::array<double, kParts> first_parts = facts.first_step_parts;
  world.sum_tree(parts);
  world.sum_tree(first_parts);
  const std::vector<std::uint64_t> announced = world.all_gather(std::uint64_t(facts.announced_bytes));
  const std::vector<std::uint64_t> device = world.all_gather(std::uint64_t(facts.device_bytes));
  const std::vector<std::uint64_t> peak = world.all_gather(std::uint64_t(peak_resident_bytes()));
  if (world.rank() != 0) return;

  const RunTotals totals = read_totals(metrics_path);
  ordered_json summary;
  summary["stage"] = deck.run.stage;
  summary["steps"] = deck.run.steps;  // all are done; the last ones may have been skipped
  summary["first_loss"] = totals.first_loss;
  summary["final_loss"] = totals.final_loss;
  summary["mean_loss_last_tenth"] = totals.mean_loss_last_tenth;
  summary["mean_accuracy_last_tenth"] = totals.mean_accuracy_last_tenth;
  summary["tokens"] = totals.tokens;
  summary["seconds"] = totals.seconds;
  summary["tokens_per_second"] = totals.seconds > 0 ? double(totals.tokens) / totals.seconds : 0;
  summary["parameters"] = facts.parameters;
  const ordered_json speed = speed_json(deck, facts);
  for (const char* key : {"flops_per_token", "flops_per_second", "roof_flops_per_second", "share_of_roof"}) {
    if (speed.contains(key)) summary[key] = speed[key];
  }
  summary["ranks"] = world.size();
  summary["threads_per_rank"] = facts.threads;
  summary["expert_ranks"] = deck.parallel.expert;
  summary["precision"] = deck.run.precision;
  summary["device"] = deck.run.device;
  for (int rank = 0; rank < world.size(); ++rank) {
    summary["memory"]["announced_mib_per_rank"].push_back(to_mib(announced[std::size_t(rank)]));
    summary["memory"]["peak_resident_mib_per_rank"].push_back(to_mib(peak[std::size_t(rank)]));
    if (deck.run.device == "cuda") {
      summary["memory"]["gpu_mib_per_rank"].push_back(to_mib(device[std::size_t(rank)]));
    }
  }
  summary["last_session"] = speed;  // since the newest (re)start; the figures above it cover the whole run
  for (std::size_t part = 0; part < kParts; ++part) {
    summary["last_session"]["part_seconds"][name_of(Part(part))] = parts[part] / world.size();
  }
  summary["last_session"]["data_wait"] = data_wait_json(facts, parts[std::size_t(Part::data)] / world.size());
  summary["last_session"]["checkpoints"] = checkpoints_json(facts.saves);
  const bool one = facts.steps < 2;  // then the first step is all there is
  for (std::size_t part = 0; part < kParts; ++part) {
    parts[part] = (parts[part] - (one ? 0 : first_parts[part])) / world.size() / double(one ? 1 : facts.steps - 1);
  }
  const ordered_json compared = prediction.compare(
      {facts.steps,
       one ? facts.step_seconds : (facts.step_seconds - facts.first_step_seconds) / double(facts.steps - 1),
       facts.traffic, parts, facts.work});
  if (!compared.empty()) summary["last_session"]["prediction"] = compared;
  write_file(path, summary.dump(2) + "\n");

  log_info("done: {} steps, {} tokens, loss {:.4f} -> {:.4f} (mean of the last 10%: {:.4f}), {:.0f} tokens/s{}",
           deck.run.steps, totals.tokens, totals.first_loss, totals.final_loss, totals.mean_loss_last_tenth,
           summary["tokens_per_second"].get<double>(),
           speed.contains("share_of_roof")
               ? fmt::format(", {:.1f}% of the matrix-product roof", 100 * speed["share_of_roof"].get<double>())
               : "");
  log_prediction(summary);
  log_info("summary: {}", path);
}

std::int64_t steps_of_summary(const std::string& path) {
  const auto summary = nlohmann::json::parse(read_file(path), nullptr, false);
  return summary.is_object() ? summary.value("steps", std::int64_t{0}) : 0;
}

}  // namespace flanmoe
