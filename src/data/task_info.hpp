// How a task is measured: which benchmark it belongs to, how the answer is found in a generated text, what counts as
// its score, and what guessing would score. Stored with the task in the shard, so that an evaluation needs no table of
// names.
#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace flanmoe {

/// How the answer is found in a generated text (evaluate/answer.hpp has the rules in full).
enum class Extraction : std::uint8_t {
  automatic,  // number, yes_no or text, as the right answer looks
  text,       // direct: the whole text; chain of thought: what follows the last "the answer is"
  letter,     // the letter of an option, "(B)" or "B"
  number,     // one number
  yes_no,     // yes or no
  whole,      // the whole text, in chain of thought too
};
inline constexpr std::array<const char*, 6> kExtractionNames = {"automatic", "text",   "letter",
                                                                "number",    "yes_no", "whole"};

/// Which measurement is the task's score.
enum class ScoreRule : std::uint8_t {
  automatic,    // acc where the example has choices and is no chain of thought, otherwise exact_match
  exact_match,  // generated and extracted answer equals one of the right answers
  acc,          // the right choice is the likeliest
  acc_norm,     // the same per byte
  rouge_l,      // F-measure of the longest common subsequence with the nearest right answer
};
inline constexpr std::array<const char*, 5> kScoreNames = {"automatic", "exact_match", "acc", "acc_norm", "rouge_l"};

struct TaskInfo {
  std::string benchmark = {};  // "mmlu", "bbh", "reasoning", "qa", "niv2", ...; empty: none
  std::string group = {};      // category of the benchmark that is averaged apart ("STEM"); empty: none
  std::string part_of = {};    // tasks with the same name here are averaged to one task first; empty: stands for itself
  Extraction extraction = Extraction::automatic;
  ScoreRule score = ScoreRule::automatic;
  /// Score of random guessing, in [0, 1); -1: 1 / number of choices of each example, 0 without choices.
  double chance = -1;

  bool operator==(const TaskInfo&) const = default;
};

const char* name_of(Extraction extraction);
const char* name_of(ScoreRule score);
/// Empty when there is no such name.
std::optional<Extraction> extraction_of(std::string_view name);
std::optional<ScoreRule> score_of(std::string_view name);

/// What is known of the published benchmarks: `task` is the name that the released files use ("abstract_algebra" of
/// "mmlu", "snarks" of "bbh", "gsm8k" of "reasoning", "arc_easy" of "qa"); every task of "niv2", "tydiqa" and "mgsm" is
/// measured alike. Empty: no such benchmark or task.
std::optional<TaskInfo> published_task(std::string_view benchmark, std::string_view task);
/// Names of the tasks that published_task knows by name, in alphabetical order; empty for other benchmarks.
std::vector<std::string> published_tasks(std::string_view benchmark);

}  // namespace flanmoe
