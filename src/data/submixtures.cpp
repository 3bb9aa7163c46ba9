#include "data/submixtures.hpp"

#include <fmt/ranges.h>

#include <algorithm>
#include <charconv>
#include <cmath>

#include "base/error.hpp"
#include "data/patterns.hpp"
#include "data/text.hpp"

namespace flanmoe {
namespace {

template <class Number>
bool parse_number(const std::string& text, Number& value) {
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  return error == std::errc() && end == text.data() + text.size() && value >= 0;
}

Submixture parse_word(const std::string& word) {
  Submixture sub;
  const std::size_t equals = word.find('=');
  const auto parts = split(std::string_view(word).substr(equals == std::string::npos ? 0 : equals + 1), ':');
  bool good = equals != std::string::npos && equals > 0 && parts.size() == 4;
  good = good && parse_number(parts[0], sub.share) && std::isfinite(sub.share) && sub.share > 0;
  good = good && parse_number(parts[1], sub.cap) && parse_number(parts[2], sub.tasks);
  if (good) {
    sub.name = word.substr(0, equals);
    sub.patterns = split(parts[3], ',');
    good = std::none_of(sub.patterns.begin(), sub.patterns.end(), [](const std::string& p) { return p.empty(); });
  }
  if (!good) {
    usage_fail("data.submixtures: expected NAME=SHARE:CAP:TASKS:PATTERN,PATTERN with a share above 0, found '{}'",
               word);
  }
  return sub;
}

double base_rate(const Submixture& sub, const SubmixtureTask& task, double temperature) {
  const std::int64_t capped = sub.cap > 0 ? std::min(task.items, sub.cap) : task.items;
  return task.weight * std::pow(double(capped), 1.0 / temperature);
}

/// "niv2: 24.2% of the weight, 172 of 1554 tasks; no task matches niv2_x".
std::string note_of(const Submixture& sub, double share, std::int64_t present,
                    const std::vector<std::string>& missing) {
  std::string note = fmt::format("sub-mixture {}: {:.3g}% of the weight, {}{} tasks", sub.name, 100 * share, present,
                                 sub.tasks > 0 ? fmt::format(" of {}", sub.tasks) : "");
  if (!missing.empty()) note += fmt::format("; no task matches {}", fmt::join(missing, ", "));
  return note;
}

/// How much of a sub-mixture is there: its tasks where their number is known, else its patterns.
double coverage_of(const Submixture& sub, std::int64_t present, std::size_t missing) {
  if (sub.tasks > 0) return std::min(1.0, double(present) / double(sub.tasks));
  return present == 0 ? 0.0 : 1.0 - double(missing) / double(sub.patterns.size());
}

}  // namespace

std::vector<Submixture> parse_submixtures(const std::string& text) {
  std::vector<Submixture> all;
  for (const std::string& word : split_words(text)) {
    Submixture sub = parse_word(word);
    for (const Submixture& other : all) {
      if (other.name == sub.name) usage_fail("data.submixtures: a second sub-mixture '{}'", sub.name);
    }
    all.push_back(std::move(sub));
  }
  return all;
}

NestedRates nested_rates(const std::vector<Submixture>& submixtures, const std::vector<SubmixtureTask>& tasks,
                         double temperature) {
  double all_shares = 0, covered = 0, total = 0;
  for (const Submixture& sub : submixtures) all_shares += sub.share;
  NestedRates nested;
  nested.rates.assign(tasks.size(), 0);
  std::vector<bool> placed(tasks.size(), false);
  for (const Submixture& sub : submixtures) {
    double sum = 0;
    std::int64_t present = 0;
    std::vector<double> base(tasks.size(), 0);
    for (std::size_t t = 0; t < tasks.size(); ++t) {
      if (!matches_any(sub.patterns, tasks[t].name)) continue;
      placed[t] = true;
      ++present;
      sum += base[t] = base_rate(sub, tasks[t], temperature);
    }
    std::vector<std::string> missing;
    for (const std::string& pattern : sub.patterns) {
      const bool found = std::any_of(tasks.begin(), tasks.end(),
                                     [&](const SubmixtureTask& task) { return matches_pattern(pattern, task.name); });
      if (!found) missing.push_back(pattern);
    }
    const double share = sub.share / all_shares;
    nested.notes.push_back(note_of(sub, share, present, missing));
    covered += share * coverage_of(sub, present, missing.size());
    if (!(sum > 0)) continue;
    total += share;
    for (std::size_t t = 0; t < tasks.size(); ++t) nested.rates[t] += share * base[t] / sum;
  }
  const auto homeless = std::find(placed.begin(), placed.end(), false);
  if (homeless != placed.end()) {
    usage_fail("data.submixtures: task '{}' is in none of the sub-mixtures; leave it out by data.exclude_tasks",
               tasks[std::size_t(homeless - placed.begin())].name);
  }
  if (!(total > 0)) usage_fail("data.submixtures: no sub-mixture has a task with a rate above 0");
  for (double& rate : nested.rates) rate /= total;
  nested.notes.push_back(fmt::format("the tasks at hand cover {:.1f}% of the mixture's weight", 100 * covered));
  return nested;
}

}  // namespace flanmoe
