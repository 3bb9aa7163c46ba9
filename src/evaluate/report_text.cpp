// The comparison as a printed table and as JSON.
#include <fmt/format.h>

#include <algorithm>

#include "evaluate/report.hpp"

namespace flanmoe {
namespace {

std::string percent(const std::optional<Share>& share) {
  if (!share) return "-";
  return fmt::format("{:.1f} ±{:.1f}", 100 * share->value, 100 * share->standard_error);
}

/// Right-aligned in `width` columns; "±" is two bytes but one column.
std::string right(const std::string& text, std::size_t width) {
  const auto columns = std::size_t(std::count_if(text.begin(), text.end(), [](char c) { return (c & 0xC0) != 0x80; }));
  return std::string(width > columns ? width - columns : 0, ' ') + text;
}

void add_training(std::vector<std::string>& lines, const Report& report) {
  lines.push_back(fmt::format("{:<22}{:>26}{:>14}{:>16}{:>14}", "training", "loss, nats/token", "tokens/s",
                              "% of matmul", "parameters"));
  for (std::size_t stage = 0; stage < report_stages.size(); ++stage) {
    for (std::size_t m = 0; m < report_models.size(); ++m) {
      const TrainingRun& run = report.training[m][stage];
      lines.push_back(
          fmt::format("{:<22}{:<6}{:>20}{:>14.0f}{:>16}{:>13.2f}M", m == 0 ? run.stage : "", report_models[m],
                      fmt::format("{:.3f} -> {:.3f}", run.first.value, run.last.value), run.tokens_per_second,
                      run.share_of_roof ? fmt::format("{:.1f}", 100 * *run.share_of_roof) : "-", run.parameters / 1e6));
    }
  }
  lines.push_back(
      "loss: mean of the first tenth -> of the last tenth of the steps; % of matmul: share of the speed of");
  lines.push_back("this machine's matrix products, measured in the same run");
}

void add_scores(std::vector<std::string>& lines, const Report& report) {
  std::size_t width = 6;
  for (const auto& row : report.comparisons) width = std::max(width, row.title.size());
  lines.push_back(fmt::format("{:<{}}  {:<8} {:>7}{}{}{}{}  {}", "scores", width, "set-up", "chance",
                              right("moe acc", 13), right("dense acc", 13), right("moe exact", 13),
                              right("dense exact", 13), "ahead"));
  for (const auto& row : report.comparisons) {
    const auto &moe = row.cells[0], &dense = row.cells[1];
    const auto& chance = moe.chance ? moe.chance : dense.chance;
    lines.push_back(fmt::format("{:<{}}  {:<8} {:>7}{}{}{}{}  {}", row.title, width, row.setup,
                                chance ? fmt::format("{:.1f}", 100 * *chance) : "-", right(percent(moe.acc), 13),
                                right(percent(dense.acc), 13), right(percent(moe.exact_match), 13),
                                right(percent(dense.exact_match), 13), row.winner()));
  }
  lines.push_back(
      "all in percent, ± one standard error; acc: likeliest of the choices; exact: generated answer is the");
  lines.push_back("right one; set-ups of the paper: i finetuning alone, ii instruction tuning, iii both; ahead: by");
  lines.push_back("more than two standard errors of the difference, in acc where there are choices, else in exact");
}

Json share_json(const std::optional<Share>& share) {
  if (!share) return nullptr;
  return {{"value", share->value}, {"stderr", share->standard_error}, {"n", share->n}};
}

Json optional_json(const std::optional<double>& value) { return value ? Json(*value) : Json(nullptr); }

Json training_json(const TrainingRun& run) {
  Json j;
  j["steps"] = run.loss.size();
  j["loss_first_tenth"] = run.first.value;
  j["loss_last_tenth"] = run.last.value;
  j["loss_first_step"] = run.loss.front();
  j["loss_last_step"] = run.loss.back();
  j["tokens_per_second"] = run.tokens_per_second;
  j["share_of_roof"] = optional_json(run.share_of_roof);
  j["flops_per_token"] = optional_json(run.flops_per_token);
  j["parameters"] = run.parameters;
  return j;
}

}  // namespace

std::vector<std::string> report_table(const Report& report) {
  std::vector<std::string> lines;
  add_training(lines, report);
  lines.emplace_back();
  add_scores(lines, report);
  lines.emplace_back();
  for (const Check& check : report.checks) {
    lines.push_back(fmt::format("{} {}: {}", check.passed ? "[yes]" : "[NO] ", check.name, check.detail));
  }
  lines.push_back(report.passed() ? "All checks passed: the losses fell and held-in accuracy is above chance."
                                  : "NOT all checks passed: see the lines marked [NO].");
  return lines;
}

Json report_json(const Report& report) {
  Json j;
  j["passed"] = report.passed();
  j["checks"] = Json::array();
  for (const Check& check : report.checks) {
    j["checks"].push_back({{"name", check.name}, {"passed", check.passed}, {"detail", check.detail}});
  }
  j["finetune_task"] = report.finetune_task;
  for (std::size_t m = 0; m < report_models.size(); ++m) {
    for (const TrainingRun& run : report.training[m]) j["training"][report_models[m]][run.stage] = training_json(run);
  }
  j["scores"] = Json::array();
  for (const Comparison& row : report.comparisons) {
    Json line = {{"name", row.name}, {"title", row.title}, {"setup", row.setup}, {"ahead", row.winner()}};
    for (std::size_t m = 0; m < report_models.size(); ++m) {
      line[report_models[m]] = {{"acc", share_json(row.cells[m].acc)},
                                {"exact_match", share_json(row.cells[m].exact_match)},
                                {"chance", optional_json(row.cells[m].chance)}};
    }
    j["scores"].push_back(line);
  }
  for (std::size_t layer = 0; layer < report.load.layers.size(); ++layer) {
    j["expert_load"][report.load.layers[layer]] = report.load.load[layer];
  }
  return j;
}

}  // namespace flanmoe
