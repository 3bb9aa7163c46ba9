// What every kernel test needs: operands between guard bands, random values, comparison, numerical gradients.
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <functional>
#include <numbers>
#include <random>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "kernels/context.hpp"
#include "tensor/arena.hpp"
#include "tensor/tensor.hpp"

namespace flanmoe::test {

/// A tensor that owns its memory, for tests. The bytes before and after it, and the columns between `cols` and the
/// stride, are 0xff: NaN in every floating type (so a kernel that reads them spoils its result) and a mark that
/// check_guards(), called by the destructor too, expects to find untouched. Elements start as the same NaN (-1 in i32).
class Buffer {
 public:
  Buffer(DType dtype, std::int64_t rows, std::int64_t cols, std::int64_t padding = 0, std::int64_t batch = 1)
      : bytes_(std::size_t(batch * rows * (cols + padding)) * size_of(dtype) + 2 * guard_bytes, std::uint8_t{0xff}) {
    view_ = {bytes_.data() + guard_bytes, dtype, batch, rows, cols, cols + padding};
  }
  ~Buffer() {
    if (!bytes_.empty()) check_guards();
  }
  Buffer(Buffer&&) = default;  // moving a vector leaves its elements in place, so the view stays right
  Buffer& operator=(Buffer&&) = delete;

  const Tensor& view() const { return view_; }
  operator const Tensor&() const { return view_; }
  std::int64_t size() const { return view_.size(); }

  double get(std::int64_t i) const {
    const void* at = element(i);
    switch (view_.dtype) {
      case DType::f32: return double(load<float>(at));
      case DType::bf16: return double(float(load<bf16>(at)));
      case DType::f64: return load<double>(at);
      case DType::i32: return double(load<std::int32_t>(at));
    }
    return 0;
  }
  /// Element i counted in row-major order without the padding; rounded to the element type.
  void set(std::int64_t i, double value) {
    void* at = element(i);
    switch (view_.dtype) {
      case DType::f32: store(at, float(value)); break;
      case DType::bf16: store(at, bf16(float(value))); break;
      case DType::f64: store(at, value); break;
      case DType::i32: store(at, std::int32_t(value)); break;
    }
  }
  std::vector<double> values() const {
    std::vector<double> out(static_cast<std::size_t>(size()));
    for (std::int64_t i = 0; i < size(); ++i) out[std::size_t(i)] = get(i);
    return out;
  }
  Buffer& assign(const std::vector<double>& values) {
    EXPECT_EQ(std::int64_t(values.size()), size());
    for (std::int64_t i = 0; i < std::min(size(), std::int64_t(values.size())); ++i) set(i, values[std::size_t(i)]);
    return *this;
  }
  Buffer& fill(double value) {
    for (std::int64_t i = 0; i < size(); ++i) set(i, value);
    return *this;
  }
  /// Normal values with standard deviation `scale`; the same seed gives the same values in every element type, but for
  /// rounding.
  Buffer& randomize(std::uint64_t seed, double scale = 1.0) {
    std::mt19937_64 engine(seed * 0x9e3779b97f4a7c15U + 1);
    const auto uniform = [&] { return (double(engine() >> 11) + 0.5) * 0x1p-53; };
    for (std::int64_t i = 0; i < size(); ++i) {
      const double radius = std::sqrt(-2 * std::log(uniform()));
      set(i, scale * radius * std::cos(2 * std::numbers::pi * uniform()));
    }
    return *this;
  }
  /// Uniform integers in [0, bound).
  Buffer& randomize_below(std::uint64_t seed, std::int64_t bound) {
    std::mt19937_64 engine(seed * 0x9e3779b97f4a7c15U + 2);
    for (std::int64_t i = 0; i < size(); ++i) set(i, double(engine() % std::uint64_t(bound)));
    return *this;
  }
  /// Rounds another buffer of the same shape into this one.
  Buffer& copy_from(const Buffer& other) { return assign(other.values()); }

  void check_guards() const {
    std::size_t touched = 0;
    std::vector<std::uint8_t> inside(bytes_.size(), 0);
    const std::size_t element_bytes = size_of(view_.dtype);
    for (std::int64_t r = 0; r < view_.batch * view_.rows; ++r) {
      const auto begin = inside.begin() + std::ptrdiff_t(guard_bytes + std::size_t(r * view_.stride) * element_bytes);
      std::fill(begin, begin + std::ptrdiff_t(std::size_t(view_.cols) * element_bytes), std::uint8_t{1});
    }
    for (std::size_t i = 0; i < bytes_.size(); ++i) touched += (inside[i] == 0 && bytes_[i] != 0xff) ? 1 : 0;
    EXPECT_EQ(touched, 0U) << "a kernel wrote outside of a " << view_.batch << " x " << view_.rows << " x "
                           << view_.cols << " tensor of stride " << view_.stride;
  }
  /// True when both hold the same bits (shapes and types must agree; padding may differ).
  friend bool same_bits(const Buffer& a, const Buffer& b) {
    if (a.size() != b.size() || a.view_.dtype != b.view_.dtype) return false;
    for (std::int64_t i = 0; i < a.size(); ++i) {
      if (std::memcmp(a.element(i), b.element(i), size_of(a.view_.dtype)) != 0) return false;
    }
    return true;
  }

 private:
  static constexpr std::size_t guard_bytes = 256;

  void* element(std::int64_t i) const {
    const std::int64_t row = i / view_.cols;
    return static_cast<char*>(view_.data) + (row * view_.stride + i % view_.cols) * std::int64_t(size_of(view_.dtype));
  }
  template <class T>
  static T load(const void* at) {
    T value;
    std::memcpy(&value, at, sizeof value);
    return value;
  }
  template <class T>
  static void store(void* at, T value) {
    std::memcpy(at, &value, sizeof value);
  }

  std::vector<std::uint8_t> bytes_;
  Tensor view_;
};

/// A kernel context with committed scratch; expects that every kernel gave back what it took.
class TestContext {
 public:
  /// Room for matrix products, whose scratch grows with the number of threads, and for `bytes` more.
  explicit TestContext(std::int64_t bytes = std::int64_t{1} << 24) : scratch_("scratch") {
    bytes += (std::int64_t{24} << 20) + (std::int64_t{2} << 20) * std::int64_t(std::thread::hardware_concurrency());
    scratch_.allocate(DType::f64, 1, (bytes + 7) / 8);
    scratch_.commit();
    scratch_.rewind();
    context_.scratch = &scratch_;
  }
  ~TestContext() { EXPECT_EQ(scratch_.used(), 0U) << "a kernel kept scratch memory"; }
  TestContext(const TestContext&) = delete;
  TestContext& operator=(const TestContext&) = delete;

  operator KernelContext&() { return context_; }

 private:
  Arena scratch_;
  KernelContext context_;
};

/// One implementation of an operation: `for (const auto& device : devices_of(reference::norm_kernels,
/// cpu::norm_kernels)) device.kernels.forward(...)`.
template <class Table>
struct Implementation {
  std::string device;
  const Table& kernels;
};
template <class Table>
std::array<Implementation<Table>, 2> devices_of(const Table& reference, const Table& cpu) {
  return {Implementation<Table>{"reference", reference}, Implementation<Table>{"cpu", cpu}};
}
/// `cuda`: the table of cuda_tables.hpp.
template <class Table>
std::array<Implementation<Table>, 3> devices_of(const Table& reference, const Table& cpu, const Table& cuda) {
  return {Implementation<Table>{"reference", reference}, Implementation<Table>{"cpu", cpu},
          Implementation<Table>{"cuda", cuda}};
}
/// The implementations that are compared with the reference.
template <class Table>
std::array<Implementation<Table>, 2> fast_devices_of(const Table& cpu, const Table& cuda) {
  return {Implementation<Table>{"cpu", cpu}, Implementation<Table>{"cuda", cuda}};
}

/// Unit roundoff: the largest relative error of rounding to this type.
inline double roundoff(DType dtype) {
  switch (dtype) {
    case DType::f32: return 0x1p-24;
    case DType::bf16: return 0x1p-8;
    case DType::f64: return 0x1p-53;
    case DType::i32: return 0.0;
  }
  return 0.0;
}

/// Expects |actual - expected| <= 2 roundoff(actual's type) |expected| + extra * max |expected|. The first part is the
/// rounding of the stored result (two steps, since both sides may have been rounded); `extra` is what the test states
/// for the arithmetic inside, for example the rounding of a long fp32 sum. Infinities must agree; NaN never passes.
inline void expect_close(const Buffer& actual, const std::vector<double>& expected, double extra,
                         const std::string& what = "") {
  ASSERT_EQ(actual.size(), std::int64_t(expected.size())) << what;
  double largest = 0;
  for (const double e : expected) {
    if (std::isfinite(e)) largest = std::max(largest, std::abs(e));
  }
  int reported = 0;
  for (std::int64_t i = 0; i < actual.size() && reported < 5; ++i) {
    const double a = actual.get(i);
    const double e = expected[std::size_t(i)];
    const double allowed = 2 * roundoff(actual.view().dtype) * std::abs(e) + extra * largest;
    const bool good = (std::isinf(e) && a == e) || std::abs(a - e) <= allowed;
    if (good) continue;
    ++reported;
    ADD_FAILURE() << what << " element (" << i / actual.view().cols << ", " << i % actual.view().cols << "): got " << a
                  << ", expected " << e << ", difference " << a - e << " exceeds " << allowed;
  }
}
inline void expect_close(const Buffer& actual, const Buffer& expected, double extra, const std::string& what = "") {
  expect_close(actual, expected.values(), extra, what);
}

/// The sum over elements of weight * value: a scalar "loss" whose gradient by the values is the weight.
inline double weighted_sum(const Buffer& values, const Buffer& weights) {
  double sum = 0;
  for (std::int64_t i = 0; i < values.size(); ++i) sum += values.get(i) * weights.get(i);
  return sum;
}

/// Gradient of `loss` (which runs a reference kernel on f64 tensors and reads x) by every element of x, by central
/// differences.
inline std::vector<double> central_difference(const std::function<double()>& loss, Buffer& x, double step = 1e-5) {
  std::vector<double> gradient(static_cast<std::size_t>(x.size()));
  for (std::int64_t i = 0; i < x.size(); ++i) {
    const double middle = x.get(i);
    x.set(i, middle + step);
    const double above = loss();
    x.set(i, middle - step);
    const double below = loss();
    x.set(i, middle);
    gradient[std::size_t(i)] = (above - below) / (2 * step);
  }
  return gradient;
}

/// Expects the analytic gradient (f64) to agree with central differences of `loss`; the difference quotient itself is
/// good to about 1e-9 relative to the largest gradient, `extra` states more where a loss is steep.
inline void expect_gradient(const Buffer& analytic, const std::function<double()>& loss, Buffer& x,
                            const std::string& what = "", double extra = 1e-7) {
  ASSERT_EQ(x.view().dtype, DType::f64) << "numerical gradients need double precision";
  expect_close(analytic, central_difference(loss, x), extra, what);
}

}  // namespace flanmoe::test
