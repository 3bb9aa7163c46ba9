#include "train/checkpoint_study.hpp"

#include <nlohmann/json.hpp>

#include "base/error.hpp"
#include "train/metrics.hpp"
#include "train/run_folder.hpp"

namespace flanmoe {

std::optional<SavingResult> read_saving_result(const std::string& dir, const std::string& way) {
  const RunPaths paths{dir};
  const auto summary = nlohmann::json::parse(read_file(paths.summary()), nullptr, false);
  if (!summary.is_object()) return std::nullopt;
  const std::vector<StepRecord> records = read_metrics(paths.metrics());
  if (records.size() < 2) fail("{}: expected at least two steps, to leave out the first one", dir);
  SavingResult result;
  result.way = way;
  result.steps = std::int64_t(records.size()) - 1;
  for (std::size_t i = 1; i < records.size(); ++i) {
    result.step_seconds += records[i].step_seconds / double(result.steps);
  }
  const auto& saved = summary.at("last_session").at("checkpoints");
  result.saves = saved.at("count");
  if (result.saves == 0) return result;
  const double count = double(result.saves);
  result.gigabytes = 1e-9 * saved.at("bytes").get<double>() / count;
  result.seconds = saved.at("seconds").get<double>() / count;
  result.stall_seconds = saved.at("stall_seconds").get<double>() / count;
  result.longest_stall_seconds = saved.at("longest_stall_seconds");
  return result;
}

double cost_of_a_save(const SavingResult& without, const SavingResult& result) {
  if (result.saves == 0) return 0;
  const double slower = (result.step_seconds - without.step_seconds) * double(result.steps);
  return result.stall_seconds + slower / double(result.saves);
}

std::string saving_table(const std::vector<SavingResult>& results) {
  std::string text = fmt::format("{:<16} {:>8} {:>6} {:>8} {:>8} {:>7} {:>9} {:>9} {:>9}\n", "checkpoints", "s/step",
                                 "saves", "GB", "s", "GB/s", "s stalled", "longest", "s cost");
  for (const SavingResult& r : results) {
    text += fmt::format("{:<16} {:>8.3f} {:>6}", r.way, r.step_seconds, r.saves);
    if (r.saves > 0) {
      text += fmt::format(" {:>8.3f} {:>8.3f} {:>7.2f} {:>9.3f} {:>9.3f} {:>9.3f}", r.gigabytes, r.seconds,
                          r.gigabytes / r.seconds, r.stall_seconds, r.longest_stall_seconds,
                          cost_of_a_save(results.front(), r));
    }
    text += "\n";
  }
  return text;
}

std::string saving_csv(const std::vector<SavingResult>& results) {
  std::string text =
      "checkpoints,step_seconds,saves,gigabytes,seconds,gb_per_second,stall_seconds,longest_stall_seconds,cost_"
      "seconds\n";
  for (const SavingResult& r : results) {
    text += fmt::format("{},{:.4g},{},{:.4g},{:.4g},{:.4g},{:.4g},{:.4g},{:.4g}\n", r.way, r.step_seconds, r.saves,
                        r.gigabytes, r.seconds, r.seconds > 0 ? r.gigabytes / r.seconds : 0, r.stall_seconds,
                        r.longest_stall_seconds, cost_of_a_save(results.front(), r));
  }
  return text;
}

}  // namespace flanmoe
