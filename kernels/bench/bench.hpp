// flanmoe-bench: how fast the operations are on this machine, next to what the machine can do.
#pragma once

#include <functional>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "kernels/kernels.hpp"
#include "tensor/arena.hpp"

namespace flanmoe::bench {

/// What is measured: the operations of a device.
struct Subject {
  const Kernels& k;
  KernelContext context;  // of the device, without scratch
  bool quick = false;     // small sizes, every measurement once: shows that all of it runs, and no speed

  std::int64_t size(std::int64_t usual, std::int64_t small) const { return quick ? small : usual; }
  bool on_host() const { return k.transfer.host_reaches(); }
};

/// The best that this device does, measured in the same run.
struct Roof {
  double f32_flops = 0;  // best product of large plain matrices (oneDNN or cuBLAS), operations per second
  double bf16_flops = 0;
  double tf32_flops = 0;        // fp32 operands rounded to TF32; GPUs only
  double f32_packed_flops = 0;  // best with weights already in oneDNN's own blocked layout; CPUs only
  double bf16_packed_flops = 0;
  double bytes_per_second = 0;  // y += x, on GPUs also y = x; bytes read plus bytes written

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

/// Tensors for one measurement, on the device, filled with small random numbers; freed with the object.
class Workbench {
 public:
  Workbench(const Subject& subject, std::size_t scratch_bytes);
  Tensor tensor(DType dtype, std::int64_t rows, std::int64_t cols, std::int64_t batch = 1, double scale = 0.1);
  /// i32 values below a bound.
  Tensor indices(std::int64_t rows, std::int64_t cols, std::int64_t bound);
  Tensor constant(std::int64_t rows, std::int64_t cols, float value);
  KernelContext& context() { return context_; }
  /// Seconds of the fastest of several runs: the one that was disturbed least. On a GPU, of so many runs in a row that
  /// starting them is hidden, by the time until all are done.
  double seconds(const std::function<void()>& run);

 private:
  Tensor filled(const Tensor& host);
  double timed(const std::function<void()>& run, int runs);

  const Subject& subject_;
  std::vector<Arena> arenas_;
  Arena scratch_;
  KernelContext context_;
  Tensor done_;  // what the host waits for
};

/// Boundaries of so many equal parts of [0, rows).
inline std::vector<std::int64_t> even_cuts(std::int64_t rows, std::int64_t parts) {
  std::vector<std::int64_t> first;
  for (std::int64_t i = 0; i <= parts; ++i) first.push_back(rows * i / parts);
  return first;
}

struct Section {
  std::string key;    // of the list in the JSON file: "operations", "steps" or "leaves"
  std::string title;  // printed above the table
  std::function<std::vector<Measurement>(const Subject&)> run;
};
/// All sections in the order of the report. A file that measures something defines a static Registration.
std::vector<Section>& sections();
struct Registration {
  explicit Registration(Section section) { sections().push_back(std::move(section)); }
};

Roof measure_roof(const Subject& subject);
nlohmann::ordered_json roof_report(const Subject& subject, const Roof& roof);

}  // namespace flanmoe::bench
