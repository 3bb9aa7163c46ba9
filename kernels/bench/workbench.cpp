#include <algorithm>

#include "base/timer.hpp"
#include "kernels/bench/bench.hpp"
#include "tensor/philox.hpp"

namespace flanmoe::bench {
namespace {

Arena committed(const MemorySource& memory, DType dtype, std::int64_t rows, std::int64_t cols, std::int64_t batch) {
  Arena arena("bench", memory);
  arena.allocate(dtype, rows, cols, batch);
  arena.commit();
  return arena;
}

}  // namespace

Workbench::Workbench(const Subject& subject, std::size_t scratch_bytes)
    : subject_(subject),
      scratch_(committed(*subject.k.transfer.memory, DType::f32, 1, std::int64_t(scratch_bytes) / 4 + 1, 1)),
      context_(subject.context) {
  context_.scratch = &scratch_;
  done_ = constant(1, 1, 0);
}

/// A tensor of the device with what the host holds.
Tensor Workbench::filled(const Tensor& host) {
  arenas_.push_back(committed(*subject_.k.transfer.memory, host.dtype, host.rows, host.cols, host.batch));
  const Tensor t = arenas_.back().allocate(host.dtype, host.rows, host.cols, host.batch);
  subject_.k.transfer.upload(context_, t, host);
  return t;
}

Tensor Workbench::tensor(DType dtype, std::int64_t rows, std::int64_t cols, std::int64_t batch, double scale) {
  Arena memory = committed(host_memory, dtype, rows, cols, batch);
  const Tensor host = memory.allocate(dtype, rows, cols, batch);
  const RandomKey key{arenas_.size(), RandomPurpose::test, 0, 0};
  // One block of random numbers, repeated: making them must not take longer than the measurement.
  constexpr std::int64_t kPeriod = 1 << 16;
  std::vector<float> values(kPeriod);
  for (std::int64_t i = 0; i < kPeriod; ++i) {
    values[std::size_t(i)] = float(scale) * 3.46F * (key.uniform(std::uint64_t(i), 0) - 0.5F);
  }
  for (std::int64_t i = 0; i < host.size(); ++i) {
    const float value = values[std::size_t((i + i / kPeriod * 7) % kPeriod)];
    if (dtype == DType::bf16) {
      host.as<bf16>()[i] = bf16(value);
    } else {
      host.as<float>()[i] = value;
    }
  }
  return filled(host);
}

Tensor Workbench::indices(std::int64_t rows, std::int64_t cols, std::int64_t bound) {
  const RandomKey key{arenas_.size(), RandomPurpose::test, 1, 0};
  std::vector<std::int32_t> values(std::size_t(rows * cols));
  for (std::size_t i = 0; i < values.size(); ++i) values[i] = std::int32_t(key.below(std::uint64_t(bound), i, 0));
  return filled(make_tensor(values.data(), rows, cols));
}

Tensor Workbench::constant(std::int64_t rows, std::int64_t cols, float value) {
  std::vector<float> values(std::size_t(rows * cols), value);
  return filled(make_tensor(values.data(), rows, cols));
}

double Workbench::timed(const std::function<void()>& run, int runs) {
  float done = 0;
  const double before = seconds_now();
  for (int i = 0; i < runs; ++i) run();
  subject_.k.transfer.download(context_, make_tensor(&done, 1, 1), done_);  // waits for all that was queued
  return (seconds_now() - before) / runs;
}

double Workbench::seconds(const std::function<void()>& run) {
  constexpr double kLongEnough = 0.25, kRow = 5e-3;  // seconds
  constexpr int kLeast = 3;
  double best = timed(run, 1);  // makes kernels and touches memory
  if (subject_.quick) return best;
  const int runs = subject_.on_host() ? 1 : std::max(1, int(kRow / timed(run, 1)));
  const double start = seconds_now();
  for (int n = 0; n < kLeast || seconds_now() - start < kLongEnough; ++n) best = std::min(best, timed(run, runs));
  return best;
}

}  // namespace flanmoe::bench
