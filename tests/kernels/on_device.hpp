// Kernels of kernels/cuda in tests that know host memory only: operands are copied to the device before a call and back
// after it.
#pragma once

#include <algorithm>
#include <span>
#include <tuple>
#include <vector>

#include "kernels/cuda/runtime.hpp"
#include "kernels/optimizer.hpp"
#include "tensor/tensor.hpp"

namespace flanmoe::test {

/// Calls f for the tensors of an item of a list, which may be changed.
template <class F>
void for_each_tensor(Tensor& t, F&& f) {
  f(t);
}
template <class F>
void for_each_tensor(AdamWMatrix& m, F&& f) {
  for (Tensor* t : {&m.p, &m.m, &m.v, &m.g}) f(*t);
}
template <class F>
void for_each_tensor(AdafactorMatrix& m, F&& f) {
  for (Tensor* t : {&m.p, &m.g, &m.row_factor, &m.col_factor, &m.v}) f(*t);
}
template <class F>
void for_each_tensor(WeightCopy& c, F&& f) {
  for (Tensor* t : {&c.to, &c.from}) f(*t);
}
template <class T>
concept HoldsTensors = requires(T item) {
  for_each_tensor(item, [](Tensor&) {});
};

/// What a kernel on the device is given besides its operands.
class DeviceBench {
 public:
  static DeviceBench& instance() {
    static DeviceBench bench;
    return bench;
  }
  KernelContext context;
  cuda::Stream stream;
  cuda::Staging staging;

 private:
  DeviceBench() : scratch_("scratch", cuda::device_memory) {
    scratch_.allocate(DType::f64, 1, std::int64_t{2} << 20);
    scratch_.commit();
    context = {&scratch_, stream.get(), &staging};
  }
  Arena scratch_;
};

/// Device copies of the host memory that the tensors of one call see. Memory that two of them share is one copy, so
/// that operations in place stay that; so is what lies side by side, as rows of one matrix do. The copy ends where the
/// last operand ends, so that a step further faults.
class DeviceOperands {
 public:
  ~DeviceOperands() {
    // A refused call leaves its uploads in the stream.
    DeviceBench::instance().stream.synchronize();
    for (const Range& range : ranges_) cuda::device_memory.give_back(range.device, range.bytes());
  }
  void add(const Tensor& t) {
    if (t.size() == 0 || t.absent()) return;
    char* begin = static_cast<char*>(t.data);
    char* end = begin + ((t.batch * t.rows - 1) * t.stride + t.cols) * std::int64_t(size_of(t.dtype));
    for (auto range = ranges_.begin(); range != ranges_.end();) {
      if (range->end < begin || end < range->begin) {
        ++range;
        continue;
      }
      begin = std::min(begin, range->begin);
      end = std::max(end, range->end);
      range = ranges_.erase(range);
    }
    ranges_.push_back({begin, end});
  }
  template <HoldsTensors T>
  void add(std::span<const T> list) {
    for (T item : list) for_each_tensor(item, [&](Tensor& t) { add(t); });
  }
  template <class T>
  void add(const T& /*not in device memory*/) {}

  void upload() {
    DeviceBench& bench = DeviceBench::instance();
    for (Range& range : ranges_) {
      range.device = static_cast<char*>(cuda::device_memory.take(range.bytes()));
      FLANMOE_EXPECT(range.device != nullptr, "no device memory");
      bench.staging.upload(bench.stream.get(), range.device, range.begin, range.bytes());
    }
  }
  void download() const {
    DeviceBench& bench = DeviceBench::instance();
    bench.stream.synchronize();
    for (const Range& range : ranges_) {
      bench.staging.download(bench.stream.get(), range.begin, range.device, range.bytes());
    }
  }

  Tensor on_device(const Tensor& t) const {
    Tensor there = t;
    for (const Range& range : ranges_) {
      const char* at = static_cast<const char*>(t.data);
      if (t.size() > 0 && at >= range.begin && at < range.end) there.data = range.device + (at - range.begin);
    }
    return there;
  }
  template <HoldsTensors T>
  std::vector<T> on_device(std::span<const T> list) const {
    std::vector<T> there(list.begin(), list.end());
    for (T& item : there) for_each_tensor(item, [&](Tensor& t) { t = on_device(t); });
    return there;
  }
  template <class T>
  const T& on_device(const T& value) const {
    return value;
  }

 private:
  struct Range {
    char *begin, *end;
    char* device = nullptr;
    std::size_t bytes() const { return std::size_t(end - begin); }
  };
  std::vector<Range> ranges_;
};

/// Calls member `operation` of a table of device kernels with operands in host memory.
template <const auto* table, auto operation>
struct OnDevice;
template <class Table, const Table* table, class R, class... A, R (*Table::*operation)(KernelContext&, A...)>
struct OnDevice<table, operation> {
  static R call(KernelContext& host, A... args) {
    DeviceOperands operands;
    (operands.add(args), ...);
    operands.upload();
    KernelContext& context = DeviceBench::instance().context;
    context.tf32 = host.tf32;
    if constexpr (std::is_void_v<R>) {
      (table->*operation)(context, operands.on_device(args)...);
      operands.download();
    } else {
      const R result = (table->*operation)(context, operands.on_device(args)...);
      operands.download();
      return result;
    }
  }
};
template <const auto* table, auto operation>
inline constexpr auto on_device = OnDevice<table, operation>::call;

}  // namespace flanmoe::test
