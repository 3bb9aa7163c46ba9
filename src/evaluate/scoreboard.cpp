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

std::string table_row(const std::string& name, const Json& row, std::size_t width, bool rouge) {
  const Json& chance = row.at("chance");
  std::string line = fmt::format("{:<{}}  {:<12} {:>5} {} {} {}", name, width, row.at("variant").get<std::string>(),
                                 row.at("n").get<std::int64_t>(), percent_cell(row, "exact_match"),
                                 percent_cell(row, "acc"), percent_cell(row, "acc_norm"));
  if (rouge) line += fmt::format(" {}", percent_cell(row, "rouge_l"));
  line += fmt::format(" {:>7}", chance.is_null() ? "-" : fmt::format("{:.1f}", 100 * chance.get<double>()));
  if (row.contains("nll_per_token") && !row.at("nll_per_token").is_null())
    line += fmt::format(" {:8.3f}", row.at("nll_per_token").get<double>());
  return line;
}

std::string name_of_task(const Json& row) {
  return row.at("task").get<std::string>() + (row.at("held_out").get<bool>() ? " *" : "");
}

/// The numbers of a mean over tasks; names follow.
Json mean_json(const MeanOfTasks& mean) {
  Json j;
  j["tasks"] = mean.tasks;
  j["n"] = mean.n;
  put_share(j, "score", mean.score);
  j["chance"] = mean.chance;
  j["normalized_score"] = mean.normalized_score;
  return j;
}

std::string benchmark_row(const std::string& name, const std::string& variant, const Json& row) {
  return fmt::format("{:<26} {:<12} {:>5} {:>6} {} {:>7.1f} {:>10.1f}", name, variant,
                     row.at("tasks").get<std::int64_t>(), row.at("n").get<std::int64_t>(), percent_cell(row, "score"),
                     100 * row.at("chance").get<double>(), row.at("normalized_score").get<double>());
}

void add_benchmarks(std::vector<std::string>& lines, const Json& evaluation) {
  if (evaluation.at("benchmarks").empty()) return;
  lines.emplace_back();
  lines.push_back(fmt::format("{:<26} {:<12} {:>5} {:>6} {:>12} {:>7} {:>10}", "benchmark", "variant", "tasks", "n",
                              "score %", "chance", "normalized"));
  for (const Json& row : evaluation.at("benchmarks")) {
    const auto variant = row.at("variant").get<std::string>();
    lines.push_back(benchmark_row(row.at("benchmark"), variant, row));
    for (const Json& group : row.at("groups")) {
      lines.push_back(benchmark_row(fmt::format("  {}", group.at("group").get<std::string>()), variant, group));
    }
  }
  for (const Json& average : evaluation.at("normalized_averages")) {
    std::string parts, missing;
    for (const Json& part : average.at("parts")) {
      std::string& list = part.at("score").is_null() ? missing : parts;
      list += fmt::format("{}{}", list.empty() ? "" : ", ", part.at("name").get<std::string>());
    }
    const Json& normalized = average.at("normalized");
    lines.push_back(
        normalized.is_null()
            ? fmt::format("normalized average {}: not measured: {}", average.at("name").get<std::string>(), missing)
            : fmt::format("normalized average {}: {:.1f} corrected for chance, {:.1f} raw ({})",
                          average.at("name").get<std::string>(), normalized.get<double>(),
                          average.at("raw").get<double>(), parts));
  }
}

}  // namespace

Json score_definitions() {
  return {
      {"exact_match",
       "share of examples whose generated answer equals a right one after extraction and whitespace "
       "normalisation (text with case, yes/no without, numbers by value, letters as options)"},
      {"acc", "share of examples whose right choice has the highest log-likelihood (EOS included)"},
      {"acc_norm", "acc with each log-likelihood divided by the length of its choice in UTF-8 bytes"},
      {"rouge_l",
       "mean F-measure of the longest common subsequence of words with the nearest right answer; lower case, no "
       "stemming"},
      {"score", "the measurement that counts for the task; score_rule names it"},
      {"chance", "score of random guessing: of the task's information, otherwise mean of 1 / number of choices"},
      {"normalized_score", "100 (score - chance) / (1 - chance)"},
      {"_stderr",
       "sqrt(p (1 - p) / n), of rouge_l that of a mean; of an average: sqrt(sum of squares of the tasks' errors) / "
       "tasks"},
      {"nll_per_token", "mean negative log-likelihood of the right target's tokens, EOS included, in nats"},
      {"averages", "unweighted means over tasks; held_out: tasks matched by data.exclude_tasks"},
      {"benchmarks",
       "unweighted means over the tasks of a benchmark and of its groups, held-out or not; tasks that are parts of one "
       "are averaged to one first; a task without chance has chance 0"},
      {"normalized_averages",
       "unweighted means over benchmarks, raw in percent and corrected for chance task by task: flan_2022 of six, "
       "flan_moe of four scores; null unless all were measured"},
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
  put_share(j, "rouge_l", s.rouge_l);
  put_share(j, "score", s.score);
  j["score_rule"] = name_of(s.score_rule);
  j["benchmark"] = s.info.benchmark;
  j["group"] = s.info.group;
  j["part_of"] = s.info.part_of;
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
  put_share(j, "rouge_l", s.rouge_l);
  put_value(j, "chance", s.chance);
  put_value(j, "normalized_score", s.normalized_score);
  return j;
}

Json to_json(const BenchmarkScore& s) {
  Json j = mean_json(s.all);
  j["benchmark"] = s.benchmark;
  j["variant"] = s.variant;
  j["groups"] = Json::array();
  for (const MeanOfTasks& group : s.groups) {
    j["groups"].push_back(mean_json(group));
    j["groups"].back()["group"] = group.name;
  }
  return j;
}

Json to_json(const NormalizedAverage& average) {
  Json j;
  j["name"] = average.name;
  put_value(j, "raw", average.raw);
  put_value(j, "normalized", average.normalized);
  j["parts"] = Json::array();
  for (const auto& part : average.parts) {
    Json p;
    p["name"] = part.name;
    p["variant"] = part.variant.empty() ? Json(nullptr) : Json(part.variant);
    put_value(p, "score", part.score);
    put_value(p, "normalized_score", part.normalized_score);
    j["parts"].push_back(p);
  }
  return j;
}

void put_scores(Json& evaluation, const std::vector<ExampleOutcome>& outcomes) {
  const auto scores = score_tasks(outcomes);
  const auto benchmarks = score_benchmarks(scores);
  for (const char* list : {"tasks", "averages", "benchmarks", "normalized_averages"}) evaluation[list] = Json::array();
  for (const auto& score : scores) evaluation["tasks"].push_back(to_json(score));
  for (const auto& mean : average_scores(scores)) evaluation["averages"].push_back(to_json(mean));
  for (const auto& benchmark : benchmarks) evaluation["benchmarks"].push_back(to_json(benchmark));
  if (benchmarks.empty()) return;
  for (const auto& average : normalized_averages(benchmarks)) {
    evaluation["normalized_averages"].push_back(to_json(average));
  }
}

std::vector<std::string> average_lines(const Json& evaluation) {
  std::vector<std::string> lines;
  for (const Json& row : evaluation.at("averages")) {
    std::string line = fmt::format("{}, {}:", row.at("set") == "held_out" ? "held-out tasks" : "held-in tasks",
                                   row.at("variant").get<std::string>());
    for (const char* name : {"exact_match", "acc", "rouge_l"}) {
      if (!row.at(name).is_null()) line += fmt::format(" {} {}%", name, percent_cell(row, name));
    }
    lines.push_back(line);
  }
  return lines;
}

std::vector<std::string> score_table(const Json& evaluation) {
  std::size_t width = 8;
  bool held_out = false, rouge = false;
  for (const Json& row : evaluation.at("tasks")) {
    rouge = rouge || !row.at("rouge_l").is_null();
    width = std::max(width, name_of_task(row).size());
    held_out = held_out || row.at("held_out").get<bool>();
  }
  std::vector<std::string> lines;
  const std::string head = fmt::format("{:<{}}  {:<12} {:>5} {:>12} {:>12} {:>12}{} {:>7}", "", width, "variant", "n",
                                       "exact %", "acc %", "acc_norm %", rouge ? "    ROUGE-L %" : "", "chance");
  lines.push_back(head + "  nats/token");
  for (const Json& row : evaluation.at("tasks")) lines.push_back(table_row(name_of_task(row), row, width, rouge));
  lines.push_back(std::string(head.size(), '-'));
  for (const Json& row : evaluation.at("averages")) {
    lines.push_back(table_row(row.at("set") == "held_out" ? "held-out" : "held-in", row, width, rouge));
  }
  if (held_out) lines.push_back("* held out: not trained on. Averages are unweighted over tasks.");
  add_benchmarks(lines, evaluation);
  return lines;
}

}  // namespace flanmoe
