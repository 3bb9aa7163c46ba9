// From the outcome of every example to scores of tasks, with chance levels and standard errors.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "data/task_info.hpp"

namespace flanmoe {

/// What was measured on one example.
struct ExampleOutcome {
  std::string task, category, variant;
  TaskInfo info;
  bool held_out = false;  // the task was excluded from training
  bool trimmed = false;   // the input was longer than the model's row and lost its beginning
  // Decoding.
  bool generated = false;
  bool exact_match = false;
  double rouge_l = 0;       // measured where the task's score asks for it
  bool unfinished = false;  // stopped by max_new_tokens, not by EOS
  std::int64_t generated_tokens = 0;
  // Ranking of choices; choices 0: the example has none.
  std::int64_t choices = 0;
  bool acc = false, acc_norm = false;
  // Log-likelihood of the right target, EOS included; target_tokens 0: not measured.
  double target_nll = 0;
  std::int64_t target_tokens = 0;
};

/// A share of n trials with its standard error sqrt(p(1-p)/n), or a mean of n values with that of the mean.
struct Share {
  double value = 0, standard_error = 0;
  std::int64_t n = 0;
};
Share make_share(std::int64_t hits, std::int64_t n);

/// Mean and standard error sqrt(sum of squared deviations / (n (n - 1))) of the mean; the latter is 0 for one value.
Share make_mean(const std::vector<double>& values);

/// Scores of one task in one variant. A share that was not measured (no generation, no choices) is absent.
struct TaskScore {
  std::string task, category, variant;
  TaskInfo info;
  bool held_out = false;
  std::int64_t n = 0;
  std::optional<Share> exact_match, acc, acc_norm, rouge_l;
  /// The score that counts, and which one it is: that of info.score, or when it was not measured exact_match, or acc.
  std::optional<Share> score;
  ScoreRule score_rule = ScoreRule::exact_match;
  std::optional<double> chance;            // of the task's information, otherwise mean of 1 / number of choices
  std::optional<double> normalized_score;  // 100 (score - chance) / (1 - chance); paper facts 6.1
  double target_nll = 0;
  std::int64_t target_tokens = 0;
  std::int64_t generated_tokens = 0, generated = 0, unfinished = 0, trimmed = 0;
};

/// Unweighted mean over tasks of one variant; the standard error is that of the mean of independent task scores.
struct MeanScore {
  bool held_out = false;
  std::string variant;
  std::int64_t tasks = 0, n = 0;
  std::optional<Share> exact_match, acc, acc_norm, rouge_l;  // n: examples
  std::optional<double> chance, normalized_score;
};

/// One score per (task, variant): held-in tasks first, then by name; variants in the order zero_shot, few_shot, cot,
/// cot_few_shot, then others by name. Does not depend on the order of the outcomes, except for the rounding of
/// target_nll.
std::vector<TaskScore> score_tasks(const std::vector<ExampleOutcome>& outcomes);
std::vector<MeanScore> average_scores(const std::vector<TaskScore>& scores);

/// Index of the largest value; the first one of equals. Empty input is a LogicError.
std::int64_t best_choice(const std::vector<double>& values);

/// Log-likelihoods divided by the length of each choice in UTF-8 bytes (an empty choice counts as one byte).
std::vector<double> per_byte(const std::vector<double>& log_likelihoods, const std::vector<std::int32_t>& bytes);

}  // namespace flanmoe
