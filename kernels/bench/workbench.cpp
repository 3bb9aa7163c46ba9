#include <algorithm>

#include "base/timer.hpp"
#include "kernels/bench/bench.hpp"
#include "tensor/philox.hpp"

namespace flanmoe::bench {
namespace {

Arena committed(DType dtype, std::int64_t rows, std::int64_t cols, std::int64_t batch) {
  Arena arena("bench");
  arena.allocate(dtype, rows, cols, batch);
  arena.commit();
  return arena;
}

}  // namespace

Workbench::Workbench(std::size_t scratch_bytes)
    : scratch_(committed(DType::f32, 1, std::int64_t(scratch_bytes) / 4 + 1, 1)) {
  context_.scratch = &scratch_;
}

Tensor Workbench::tensor(DType dtype, std::int64_t rows, std::int64_t cols, std::int64_t batch, double scale) {
  arenas_.push_back(committed(dtype, rows, cols, batch));
  const Tensor t = arenas_.back().allocate(dtype, rows, cols, batch);
  const RandomKey key{arenas_.size(), RandomPurpose::test, 0, 0};
  // One block of random numbers, repeated: making them must not take longer than the measurement.
  constexpr std::int64_t kPeriod = 1 << 16;
  std::vector<float> values(kPeriod);
  for (std::int64_t i = 0; i < kPeriod; ++i) {
    values[std::size_t(i)] = float(scale) * 3.46F * (key.uniform(std::uint64_t(i), 0) - 0.5F);
  }
  for (std::int64_t i = 0; i < t.size(); ++i) {
    const float value = values[std::size_t((i + i / kPeriod * 7) % kPeriod)];
    if (dtype == DType::bf16) {
      t.as<bf16>()[i] = bf16(value);
    } else {
      t.as<float>()[i] = value;
    }
  }
  return t;
}

Tensor Workbench::indices(std::int64_t rows, std::int64_t cols, std::int64_t bound) {
  arenas_.push_back(committed(DType::i32, rows, cols, 1));
  const Tensor t = arenas_.back().allocate(DType::i32, rows, cols);
  const RandomKey key{arenas_.size(), RandomPurpose::test, 1, 0};
  for (std::int64_t i = 0; i < t.size(); ++i) {
    t.as<std::int32_t>()[i] = std::int32_t(key.below(std::uint64_t(bound), std::uint64_t(i), 0));
  }
  return t;
}

double best_seconds(const std::function<void()>& run) {
  constexpr double kLongEnough = 0.25;  // seconds
  constexpr int kLeast = 3;
  run();  // makes kernels and touches memory
  double best = 1e30;
  const double start = seconds_now();
  for (int n = 0; n < kLeast || seconds_now() - start < kLongEnough; ++n) {
    const double before = seconds_now();
    run();
    best = std::min(best, seconds_now() - before);
  }
  return best;
}

}  // namespace flanmoe::bench
