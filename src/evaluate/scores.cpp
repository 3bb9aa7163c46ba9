#include "evaluate/scores.hpp"

#include <algorithm>
#include <array>
#include <cmath>
#include <map>
#include <tuple>

#include "base/error.hpp"

namespace flanmoe {
namespace {

int order_of_variant(const std::string& variant) {
  constexpr std::array<const char*, 4> first = {"zero_shot", "few_shot", "cot", "cot_few_shot"};
  return int(std::find(first.begin(), first.end(), variant) - first.begin());
}

struct Counts {
  std::int64_t n = 0, generated = 0, exact = 0, ranked = 0, acc = 0, acc_norm = 0;
  double chance = 0;
  std::vector<double> rouge_l;
};

const std::optional<Share>& measured(const TaskScore& score, ScoreRule rule) {
  switch (rule) {
    case ScoreRule::acc: return score.acc;
    case ScoreRule::acc_norm: return score.acc_norm;
    case ScoreRule::rouge_l: return score.rouge_l;
    case ScoreRule::automatic: return score.acc ? score.acc : score.exact_match;
    case ScoreRule::exact_match: break;
  }
  return score.exact_match;
}

/// Chooses the score that counts.
void choose_score(TaskScore& score) {
  score.score_rule = score.info.score;
  if (score.score_rule == ScoreRule::automatic) {
    // Ranking tells nothing of an answer that is to follow a rationale.
    const bool rationale = score.variant.starts_with("cot") && score.exact_match;
    score.score_rule = score.acc && !rationale ? ScoreRule::acc : ScoreRule::exact_match;
  }
  if (!measured(score, score.score_rule)) {
    score.score_rule = score.exact_match ? ScoreRule::exact_match : ScoreRule::acc;
  }
  score.score = measured(score, score.score_rule);
}

TaskScore finish(TaskScore score, const Counts& c) {
  score.n = c.n;
  score.generated = c.generated;
  if (c.generated > 0) score.exact_match = make_share(c.exact, c.generated);
  if (!c.rouge_l.empty()) score.rouge_l = make_mean(c.rouge_l);
  if (c.ranked > 0) {
    score.acc = make_share(c.acc, c.ranked);
    score.acc_norm = make_share(c.acc_norm, c.ranked);
    score.chance = c.chance / double(c.ranked);
  }
  choose_score(score);
  if (score.info.chance >= 0) score.chance = score.info.chance;
  if (score.score && score.chance && *score.chance < 1.0) {
    score.normalized_score = 100.0 * (score.score->value - *score.chance) / (1.0 - *score.chance);
  }
  return score;
}

/// Mean of the shares that are there.
class MeanOfShares {
 public:
  void add(const std::optional<Share>& share) {
    if (!share) return;
    sum_ += share->value;
    variance_ += share->standard_error * share->standard_error;
    n_ += share->n;
    ++tasks_;
  }
  std::optional<Share> mean() const {
    if (tasks_ == 0) return std::nullopt;
    return Share{sum_ / tasks_, std::sqrt(variance_) / tasks_, n_};
  }

 private:
  double sum_ = 0, variance_ = 0;
  std::int64_t n_ = 0;
  int tasks_ = 0;
};

class MeanOfValues {
 public:
  void add(const std::optional<double>& value) {
    if (!value) return;
    sum_ += *value;
    ++count_;
  }
  std::optional<double> mean() const { return count_ == 0 ? std::nullopt : std::optional(sum_ / count_); }

 private:
  double sum_ = 0;
  int count_ = 0;
};

}  // namespace

Share make_share(std::int64_t hits, std::int64_t n) {
  FLANMOE_EXPECT(n > 0 && hits >= 0 && hits <= n, "{} hits of {} trials", hits, n);
  const double p = double(hits) / double(n);
  return {p, std::sqrt(p * (1.0 - p) / double(n)), n};
}

Share make_mean(const std::vector<double>& values) {
  FLANMOE_EXPECT(!values.empty(), "the mean of nothing");
  const auto n = double(values.size());
  double sum = 0, squares = 0;
  for (const double value : values) sum += value;
  for (const double value : values) squares += (value - sum / n) * (value - sum / n);
  return {sum / n, values.size() == 1 ? 0 : std::sqrt(squares / (n * (n - 1))), std::int64_t(values.size())};
}

std::vector<TaskScore> score_tasks(const std::vector<ExampleOutcome>& outcomes) {
  using Key = std::tuple<bool, std::string, int, std::string>;
  std::map<Key, std::pair<TaskScore, Counts>> tasks;
  for (const ExampleOutcome& o : outcomes) {
    auto& [score, counts] = tasks[{o.held_out, o.task, order_of_variant(o.variant), o.variant}];
    score.task = o.task;
    score.category = o.category;
    score.variant = o.variant;
    score.info = o.info;
    score.held_out = o.held_out;
    score.target_nll += o.target_nll;
    score.target_tokens += o.target_tokens;
    score.generated_tokens += o.generated_tokens;
    score.unfinished += o.unfinished;
    score.trimmed += o.trimmed;
    ++counts.n;
    counts.generated += o.generated;
    counts.exact += o.generated && o.exact_match;
    if (o.generated && o.info.score == ScoreRule::rouge_l) counts.rouge_l.push_back(o.rouge_l);
    if (o.choices == 0) continue;
    ++counts.ranked;
    counts.acc += o.acc;
    counts.acc_norm += o.acc_norm;
    counts.chance += 1.0 / double(o.choices);
  }
  std::vector<TaskScore> scores;
  for (auto& [key, task] : tasks) scores.push_back(finish(std::move(task.first), task.second));
  return scores;
}

std::vector<MeanScore> average_scores(const std::vector<TaskScore>& scores) {
  struct Means {
    MeanScore mean;
    MeanOfShares exact_match, acc, acc_norm, rouge_l;
    MeanOfValues chance, normalized;
  };
  std::map<std::tuple<bool, int, std::string>, Means> groups;
  for (const TaskScore& score : scores) {
    Means& m = groups[{score.held_out, order_of_variant(score.variant), score.variant}];
    m.mean.held_out = score.held_out;
    m.mean.variant = score.variant;
    m.mean.tasks += 1;
    m.mean.n += score.n;
    m.exact_match.add(score.exact_match);
    m.acc.add(score.acc);
    m.acc_norm.add(score.acc_norm);
    m.rouge_l.add(score.rouge_l);
    m.chance.add(score.chance);
    m.normalized.add(score.normalized_score);
  }
  std::vector<MeanScore> means;
  for (auto& [key, m] : groups) {
    m.mean.exact_match = m.exact_match.mean();
    m.mean.acc = m.acc.mean();
    m.mean.acc_norm = m.acc_norm.mean();
    m.mean.rouge_l = m.rouge_l.mean();
    m.mean.chance = m.chance.mean();
    m.mean.normalized_score = m.normalized.mean();
    means.push_back(std::move(m.mean));
  }
  return means;
}

std::int64_t best_choice(const std::vector<double>& values) {
  FLANMOE_EXPECT(!values.empty(), "no choices to rank");
  return std::max_element(values.begin(), values.end()) - values.begin();
}

std::vector<double> per_byte(const std::vector<double>& log_likelihoods, const std::vector<std::int32_t>& bytes) {
  FLANMOE_EXPECT(log_likelihoods.size() == bytes.size(), "{} log-likelihoods, {} lengths", log_likelihoods.size(),
                 bytes.size());
  std::vector<double> out(log_likelihoods.size());
  for (std::size_t i = 0; i < out.size(); ++i) out[i] = log_likelihoods[i] / double(std::max(bytes[i], 1));
  return out;
}

}  // namespace flanmoe
