#include "data/task_info.hpp"

#include <algorithm>

namespace flanmoe {
namespace {

struct Task {
  std::string_view name, group, part_of;
  double chance;
  Extraction extraction;
};

constexpr double by_choices = -1;

template <class Names>
std::optional<std::size_t> place_of(const Names& names, std::string_view name) {
  const auto found = std::find(names.begin(), names.end(), name);
  if (found == names.end()) return std::nullopt;
  return std::size_t(found - names.begin());
}

/// The subjects of hendrycks/test with the categories of its categories.py; four options each.
const std::vector<Task>& mmlu() {
  static const std::vector<Task> tasks = [] {
    const std::vector<std::pair<const char*, std::vector<const char*>>> categories = {
        {"STEM",
         {"abstract_algebra", "astronomy", "college_biology", "college_chemistry", "college_computer_science",
          "college_mathematics", "college_physics", "computer_security", "conceptual_physics", "electrical_engineering",
          "elementary_mathematics", "high_school_biology", "high_school_chemistry", "high_school_computer_science",
          "high_school_mathematics", "high_school_physics", "high_school_statistics", "machine_learning"}},
        {"humanities",
         {"formal_logic", "high_school_european_history", "high_school_us_history", "high_school_world_history",
          "international_law", "jurisprudence", "logical_fallacies", "moral_disputes", "moral_scenarios", "philosophy",
          "prehistory", "professional_law", "world_religions"}},
        {"social sciences",
         {"econometrics", "high_school_geography", "high_school_government_and_politics", "high_school_macroeconomics",
          "high_school_microeconomics", "high_school_psychology", "human_sexuality", "professional_psychology",
          "public_relations", "security_studies", "sociology", "us_foreign_policy"}},
        {"other",
         {"anatomy", "business_ethics", "clinical_knowledge", "college_medicine", "global_facts", "human_aging",
          "management", "marketing", "medical_genetics", "miscellaneous", "nutrition", "professional_accounting",
          "professional_medicine", "virology"}},
    };
    std::vector<Task> all;
    for (const auto& [category, subjects] : categories) {
      for (const char* subject : subjects) all.push_back({subject, category, "", 0.25, Extraction::letter});
    }
    std::sort(all.begin(), all.end(), [](const Task& a, const Task& b) { return a.name < b.name; });
    return all;
  }();
  return tasks;
}

/// The 27 files of BIG-Bench Hard, which are 23 tasks; chance is the mean of 1 / options over the examples of each
/// file, 0 where the answer is free.
const std::vector<Task>& bbh() {
  constexpr Extraction text = Extraction::text;
  constexpr const char* deduction = "logical_deduction";
  constexpr const char* tracking = "tracking_shuffled_objects";
  static const std::vector<Task> tasks = {
      {"boolean_expressions", "", "", 0.5, text},
      {"causal_judgement", "", "", 0.5, text},
      {"date_understanding", "", "", 0.172, text},
      {"disambiguation_qa", "", "", 0.332, text},
      {"dyck_languages", "", "", 0, text},
      {"formal_fallacies", "", "", 0.5, text},
      {"geometric_shapes", "", "", 0.098, text},
      {"hyperbaton", "", "", 0.5, text},
      {"logical_deduction_five_objects", "", deduction, 0.2, text},
      {"logical_deduction_seven_objects", "", deduction, 1.0 / 7, text},
      {"logical_deduction_three_objects", "", deduction, 1.0 / 3, text},
      {"movie_recommendation", "", "", 0.246, text},
      {"multistep_arithmetic_two", "", "", 0, text},
      {"navigate", "", "", 0.5, text},
      {"object_counting", "", "", 0, text},
      {"penguins_in_a_table", "", "", 0.2, text},
      {"reasoning_about_colored_objects", "", "", 0.121, text},
      {"ruin_names", "", "", 0.249, text},
      {"salient_translation_error_detection", "", "", 0.167, text},
      {"snarks", "", "", 0.5, text},
      {"sports_understanding", "", "", 0.5, text},
      {"temporal_sequences", "", "", 0.25, text},
      {"tracking_shuffled_objects_five_objects", "", tracking, 0.2, text},
      {"tracking_shuffled_objects_seven_objects", "", tracking, 1.0 / 7, text},
      {"tracking_shuffled_objects_three_objects", "", tracking, 1.0 / 3, text},
      {"web_of_lies", "", "", 0.5, text},
      {"word_sorting", "", "", 0, text},
  };
  return tasks;
}

const std::vector<Task>& reasoning() {
  static const std::vector<Task> tasks = {
      {"asdiv", "", "", 0, Extraction::number},
      {"gsm8k", "", "", 0, Extraction::number},
      {"strategyqa", "", "", 0.5, Extraction::yes_no},
      {"svamp", "", "", 0, Extraction::number},
  };
  return tasks;
}

const std::vector<Task>& qa() {
  static const std::vector<Task> tasks = {
      {"arc_challenge", "", "", by_choices, Extraction::text},
      {"arc_easy", "", "", by_choices, Extraction::text},
      {"boolq", "", "", 0.5, Extraction::yes_no},
      {"unified_qa_science", "", "", by_choices, Extraction::text},
  };
  return tasks;
}

/// The named tasks of a benchmark and the score that counts; null when it has none.
std::pair<const std::vector<Task>*, ScoreRule> tasks_of(std::string_view benchmark) {
  if (benchmark == "mmlu") return {&mmlu(), ScoreRule::automatic};
  if (benchmark == "bbh") return {&bbh(), ScoreRule::exact_match};
  if (benchmark == "reasoning") return {&reasoning(), ScoreRule::exact_match};
  if (benchmark == "qa") return {&qa(), ScoreRule::automatic};
  return {nullptr, ScoreRule::automatic};
}

}  // namespace

const char* name_of(Extraction extraction) { return kExtractionNames[std::size_t(extraction)]; }
const char* name_of(ScoreRule score) { return kScoreNames[std::size_t(score)]; }

std::optional<Extraction> extraction_of(std::string_view name) {
  const auto place = place_of(kExtractionNames, name);
  return place ? std::optional(Extraction(*place)) : std::nullopt;
}

std::optional<ScoreRule> score_of(std::string_view name) {
  const auto place = place_of(kScoreNames, name);
  return place ? std::optional(ScoreRule(*place)) : std::nullopt;
}

std::optional<TaskInfo> published_task(std::string_view benchmark, std::string_view task) {
  TaskInfo info;
  info.benchmark = std::string(benchmark);
  if (benchmark == "niv2") {
    info.extraction = Extraction::whole;
    info.score = ScoreRule::rouge_l;
    info.chance = 0;
    return info;
  }
  if (benchmark == "mgsm" || benchmark == "tydiqa") {
    info.extraction = benchmark == "mgsm" ? Extraction::number : Extraction::text;
    info.score = ScoreRule::exact_match;
    info.chance = 0;
    return info;
  }
  const auto [tasks, score] = tasks_of(benchmark);
  if (tasks == nullptr) return std::nullopt;
  const auto found = std::find_if(tasks->begin(), tasks->end(), [&](const Task& t) { return t.name == task; });
  if (found == tasks->end()) return std::nullopt;
  info.group = std::string(found->group);
  info.part_of = std::string(found->part_of);
  info.extraction = found->extraction;
  info.score = score;
  info.chance = found->chance;
  return info;
}

std::vector<std::string> published_tasks(std::string_view benchmark) {
  std::vector<std::string> all;
  const auto* tasks = tasks_of(benchmark).first;
  if (tasks == nullptr) return all;
  for (const Task& task : *tasks) all.emplace_back(task.name);
  return all;
}

}  // namespace flanmoe
