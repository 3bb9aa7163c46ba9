// What checkpoints cost a training: the same run without any, with them written behind it, and standing still for them.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

namespace flanmoe {

struct SavingResult {
  std::string way;
  double step_seconds = 0;  // mean without the first step; a step does not count what it stands still for
  std::int64_t steps = 0;   // of that mean
  std::int64_t saves = 0;
  double gigabytes = 0, seconds = 0, stall_seconds = 0;  // of one checkpoint, on average
  double longest_stall_seconds = 0;
};

/// What a run left in its folder; nothing where it did not end.
std::optional<SavingResult> read_saving_result(const std::string& dir, const std::string& way);

/// Seconds by which one checkpoint makes a run longer: its stall, and what the steps beside it are slower than in the
/// run without.
double cost_of_a_save(const SavingResult& without, const SavingResult& result);

/// The first result is that without checkpoints.
std::string saving_table(const std::vector<SavingResult>& results);
std::string saving_csv(const std::vector<SavingResult>& results);

}  // namespace flanmoe
