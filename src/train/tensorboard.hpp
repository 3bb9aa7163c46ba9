// Event files that TensorBoard reads: TFRecord frames around protocol buffers, written by hand since the few messages
// in use are a page.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "base/error.hpp"
#include "base/line_file.hpp"
#include "train/metrics.hpp"

namespace flanmoe {

struct Scalar {
  std::string tag;
  double value = 0;
};

/// What a step shows in TensorBoard. Per sparse layer: how many times its fair share the busiest expert got, drops,
/// tokens without an expert, losses, entropy.
std::vector<Scalar> scalars_of(const StepRecord& record);

/// CRC-32C (Castagnoli, reflected), and as TFRecord stores it: rotated by 15 bits and shifted by a constant.
std::uint32_t crc32c(std::string_view bytes);
std::uint32_t masked_crc32c(std::string_view bytes);

/// One event with scalars, or the event that opens a file, framed.
std::string scalar_event(double wall_time, std::int64_t step, const std::vector<Scalar>& scalars);
std::string opening_event(double wall_time);

/// The event file of one run, in a folder of its own; rank 0 only. It is a copy of what the metrics say: opening it
/// writes the steps of `metrics` anew, so that no step appears twice after a restart.
class EventFile {
 public:
  /// Whatever cannot be written is said once, and no more is written: training does not hang on a copy.
  EventFile(const std::string& folder, const std::string& metrics);
  void append(const StepRecord& record);

 private:
  void write(const std::string& bytes);
  void give_up(const Error& error);
  std::optional<LineFile> file_;  // none once something could not be written
};

}  // namespace flanmoe
