// How the reference kernels read and write elements: one at a time, computing in double whatever the storage type, so
// that they are the better side of every comparison.
#pragma once

#include <type_traits>

#include "base/error.hpp"
#include "tensor/tensor.hpp"

namespace flanmoe::reference {

/// Calls f with a (meaningless) value of the floating type that `dtype` names.
template <class F>
decltype(auto) with_type(DType dtype, F&& f) {
  switch (dtype) {
    case DType::f32: return f(float{});
    case DType::bf16: return f(bf16{});
    case DType::f64: return f(double{});
    case DType::i32: break;
  }
  throw LogicError("a floating-point tensor is needed, got i32");
}

inline double to_double(float x) { return double(x); }
inline double to_double(bf16 x) { return double(float(x)); }
inline double to_double(double x) { return x; }

template <class T>
T from_double(double x) {
  if constexpr (std::is_same_v<T, bf16>) {
    return bf16(float(x));
  } else {
    return T(x);
  }
}

/// The type A that goes with the compute type C.
template <class C>
using Accumulate = std::conditional_t<std::is_same_v<C, double>, double, float>;

/// Element access by (row, column); T is the storage type, the value is a double.
template <class T>
class Matrix {
 public:
  explicit Matrix(const Tensor& t) : data_(t.as<T>()), stride_(t.stride) {}
  double operator()(std::int64_t i, std::int64_t j) const { return to_double(data_[i * stride_ + j]); }
  void set(std::int64_t i, std::int64_t j, double value) const { data_[i * stride_ + j] = from_double<T>(value); }
  void add(std::int64_t i, std::int64_t j, double value) const { set(i, j, (*this)(i, j) + value); }

 private:
  T* data_;
  std::int64_t stride_;
};

}  // namespace flanmoe::reference
