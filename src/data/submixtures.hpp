// Mixtures of mixtures: named groups of tasks, each with a share of the draws and a cap of its own.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace flanmoe {

/// One word of data.submixtures: NAME=SHARE:CAP:TASKS:PATTERN[,PATTERN...].
struct Submixture {
  std::string name;
  double share = 0;                   // of the draws, in proportion to the other shares
  std::int64_t cap = 0;               // a task counts at most so many examples; 0: no cap
  std::int64_t tasks = 0;             // that the mixture has when it is complete; 0: not known
  std::vector<std::string> patterns;  // of task names
};
/// Throws UsageError for a word of another form and for a second one of the same name.
std::vector<Submixture> parse_submixtures(const std::string& text);

struct SubmixtureTask {
  std::string name;
  std::int64_t items = 0;
  double weight = 1;  // of data.weights
};
struct NestedRates {
  std::vector<double> rates;       // of the tasks; they sum to 1
  std::vector<std::string> notes;  // what each sub-mixture holds and lacks, and how much of the weight is covered
};
/// rate(task) = sum over sub-mixtures of share * base(task) / sum of base over the sub-mixture's tasks, with base =
/// weight * min(items, cap)^(1/temperature). The shares of sub-mixtures without tasks fall to the others. Throws
/// UsageError when a task is in no sub-mixture, or nothing is left.
NestedRates nested_rates(const std::vector<Submixture>& submixtures, const std::vector<SubmixtureTask>& tasks,
                         double temperature);

}  // namespace flanmoe
