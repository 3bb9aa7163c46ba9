#include "evaluate/scoreboard.hpp"

#include <fmt/format.h>

#include <algorithm>

namespace flanmoe {
namespace {

void put_share(Json& object, const std::string& name, const std::optional<Share>& share) {
  object[name] = share ? Json(share->value) : Json(nullptr);
  object[name + "_stderr"] = share ? Json(share->standard_error) : Json(nullptr);
}

void put_value(Json& object, const std::string& name, const std::optional<double>& value) {
  object[name] = value ? Json(*value) : Json(nullptr);
}

std::string percent_cell(const Json& row, const std::string& name) {
  if (row.at(name).is_null()) return fmt::format("{:>12}", "-");
  return fmt::format("{:6.1f} ±{:4.1f}", 100 * row.at(name).get<double>(),
                     100 * row.at(name + "_stderr").get<double>());
}

std::string table_row(const std::string& name, const Json& row, std::size_t width) {
  const Json& chance = row.at("chance");
  std::string line = fmt::format(
      "{:<{}}  {:<12} {:>5} {} {} {} {:>7}", name, width, row.at("variant").get<std::string>(),
      row.at("n").get<std::int64_t>(), percent_cell(row, "exact_match"), percent_cell(row, "acc"),
      percent_cell(row, "acc_norm"), chance.is_null() ? "-" : fmt::format("{:.1f}", 100 * chance.get<double>()));
  if (row.contains("nll_per_token")) line += fmt::format(" {:8.3f}", row.at("nll_per_token").get<double>());
  return line;
}

std::string name_of_task(const Json& row) {
  return row.at("task").get<std::string>() + (row.at("held_out").get<bool>() ? " *" : "");
}

}  // namespace

Json score_definitions() {
  return {
      {"exact_match",
       "share of examples whose greedily decoded answer equals the right one after extraction and "
       "whitespace normalisation (text with case, yes/no without, numbers by value)"},
      {"acc", "share of examples whose right choice has the highest log-likelihood (EOS included)"},
      {"acc_norm", "acc with each log-likelihood divided by the length of its choice in UTF-8 bytes"},
      {"chance", "mean over examples of 1 / number of choices"},
      {"normalized_score", "100 (acc - chance) / (1 - chance)"},
      {"_stderr", "sqrt(p (1 - p) / n); of an average: sqrt(sum of squares of the tasks' errors) / tasks"},
      {"nll_per_token", "mean negative log-likelihood of the right target's tokens, EOS included, in nats"},
      {"averages", "unweighted means over tasks; held_out: tasks matched by data.exclude_tasks"},
  };
}

Json to_json(const TaskScore& s) {
  Json j;
  j["task"] = s.task;
  j["category"] = s.category;
  j["variant"] = s.variant;
  j["held_out"] = s.held_out;
  j["n"] = s.n;
  put_share(j, "exact_match", s.exact_match);
  put_share(j, "acc", s.acc);
  put_share(j, "acc_norm", s.acc_norm);
  j["ranked"] = s.acc ? s.acc->n : 0;
  put_value(j, "chance", s.chance);
  put_value(j, "normalized_score", s.normalized_score);
  j["nll_per_token"] = s.target_tokens == 0 ? Json(nullptr) : Json(s.target_nll / double(s.target_tokens));
  j["target_tokens"] = s.target_tokens;
  j["generated_tokens"] = s.generated_tokens;
  j["unfinished"] = s.unfinished;
  j["trimmed_inputs"] = s.trimmed;
  return j;
}

Json to_json(const MeanScore& s) {
  Json j;
  j["set"] = s.held_out ? "held_out" : "held_in";
  j["variant"] = s.variant;
  j["tasks"] = s.tasks;
  j["n"] = s.n;
  put_share(j, "exact_match", s.exact_match);
  put_share(j, "acc", s.acc);
  put_share(j, "acc_norm", s.acc_norm);
  put_value(j, "chance", s.chance);
  put_value(j, "normalized_score", s.normalized_score);
  return j;
}

std::vector<std::string> score_table(const Json& evaluation) {
  std::size_t width = 8;
  bool held_out = false;
  for (const Json& row : evaluation.at("tasks")) {
    width = std::max(width, name_of_task(row).size());
    held_out = held_out || row.at("held_out").get<bool>();
  }
  std::vector<std::string> lines;
  const std::string head = fmt::format("{:<{}}  {:<12} {:>5} {:>12} {:>12} {:>12} {:>7}", "", width, "variant", "n",
                                       "exact %", "acc %", "acc_norm %", "chance");
  lines.push_back(head + "  nats/token");
  for (const Json& row : evaluation.at("tasks")) lines.push_back(table_row(name_of_task(row), row, width));
  lines.push_back(std::string(head.size(), '-'));
  for (const Json& row : evaluation.at("averages")) {
    lines.push_back(table_row(row.at("set") == "held_out" ? "held-out" : "held-in", row, width));
  }
  if (held_out) lines.push_back("* held out: not trained on. Averages are unweighted over tasks.");
  return lines;
}

}  // namespace flanmoe
