#include "train/roof.hpp"

#include <algorithm>
#include <array>
#include <cstring>

#include "base/timer.hpp"

namespace flanmoe {
namespace {

constexpr std::int64_t kSide = 768;
constexpr double kWindowSeconds = 0.05;
constexpr int kWindows = 4;  // the fastest counts: others may have lost time to the machine

}  // namespace

double measure_roof(const Kernels& kernels, DType compute, const Communicator& world) {
  Arena memory("roof"), scratch("roof scratch");
  for (int i = 0; i < 3; ++i) memory.allocate(compute, kSide, kSide);
  scratch.allocate(DType::f32, 1, std::int64_t(kernels.matmul.scratch_bytes() / sizeof(float)));
  for (Arena* arena : {&memory, &scratch}) {
    arena->commit();
    arena->rewind();
  }
  const Tensor a = memory.allocate(compute, kSide, kSide), b = memory.allocate(compute, kSide, kSide);
  const Tensor y = memory.allocate(compute, kSide, kSide);
  for (const Tensor& x : {a, b}) std::memset(x.data, 0x3f, x.bytes());  // 0.75 in every type; zeros run cooler
  KernelContext context{.scratch = &scratch};
  const auto product = [&] { kernels.matmul.product(context, y, a, Transpose::no, b, Transpose::no, 0.0F); };

  product();  // makes and caches the primitive
  double best = 0;
  for (int window = 0; window < kWindows; ++window) {
    world.barrier();
    const double start = seconds_now();
    double products = 0, seconds = 0;
    do {
      product();
      products += 1;
      seconds = seconds_now() - start;
    } while (seconds < kWindowSeconds);
    std::array<double, 1> speed = {2.0 * kSide * kSide * kSide * products / seconds};
    world.sum_tree(speed);
    best = std::max(best, speed[0]);
  }
  return best;
}

double measure_memory_speed(const Kernels& kernels, const Communicator& world) {
  constexpr std::int64_t kRows = 2048, kColumns = 1024;  // 8 MiB each
  Arena memory("roof");
  for (int i = 0; i < 2; ++i) memory.allocate(DType::f32, kRows, kColumns);
  memory.commit();
  const Tensor y = memory.allocate(DType::f32, kRows, kColumns), x = memory.allocate(DType::f32, kRows, kColumns);
  KernelContext context;
  world.barrier();
  const double start = seconds_now();
  double sums = 0, seconds = 0;
  do {
    kernels.elementwise.add(context, y, x);
    sums += 1;
    seconds = seconds_now() - start;
  } while (seconds < kWindowSeconds);
  std::array<double, 1> speed = {3.0 * double(x.bytes()) * sums / seconds};
  world.sum_tree(speed);
  return speed[0] / world.size();
}

}  // namespace flanmoe
