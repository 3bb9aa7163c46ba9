// flanmoe-bench: how fast the operations are on this machine, next to what the machine can do.
#pragma once

#include <functional>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "kernels/kernels.hpp"
#include "tensor/arena.hpp"

namespace flanmoe::bench {

/// The best that this machine does, measured in the same run.
struct Roof {
  double f32_flops = 0;  // best oneDNN product of large plain matrices, operations per second
  double bf16_flops = 0;
  double f32_packed_flops = 0;  // best with weights already in oneDNN's own blocked layout
  double bf16_packed_flops = 0;
  double bytes_per_second = 0;  // y += x with all threads, bytes read plus bytes written

  double flops(DType dtype) const { return dtype == DType::bf16 ? bf16_flops : f32_flops; }
};

/// One line of the report. Work is counted in useful operations and in bytes that must be moved at least once.
struct Measurement {
  std::string name;
  std::string precision;
  std::string shape;
  double seconds = 0;
  double flops = 0;  // 0: bound by memory, judged by bytes
  double bytes = 0;
  nlohmann::ordered_json more = nlohmann::ordered_json::object();  // further numbers for the JSON record
};

/// Tensors for one measurement, filled with small random numbers; freed with the object.
class Workbench {
 public:
  explicit Workbench(std::size_t scratch_bytes);
  Tensor tensor(DType dtype, std::int64_t rows, std::int64_t cols, std::int64_t batch = 1, double scale = 0.1);
  /// i32 values below a bound.
  Tensor indices(std::int64_t rows, std::int64_t cols, std::int64_t bound);
  KernelContext& context() { return context_; }

 private:
  std::vector<Arena> arenas_;
  Arena scratch_;
  KernelContext context_;
};

/// Seconds of the fastest of several runs: the one that was disturbed least.
double best_seconds(const std::function<void()>& run);

struct Section {
  std::string key;    // of the list in the JSON file: "operations" or "steps"
  std::string title;  // printed above the table
  std::function<std::vector<Measurement>(const Kernels&)> run;
};
/// All sections in the order of the report. A file that measures something defines a static Registration.
std::vector<Section>& sections();
struct Registration {
  explicit Registration(Section section) { sections().push_back(std::move(section)); }
};

Roof measure_roof();
nlohmann::ordered_json roof_report(const Roof& roof);

}  // namespace flanmoe::bench
