// A view of a matrix, or of a batch of matrices, in memory that something else owns. Copying copies the view.
#pragma once

#include <cstdint>
#include <span>

#include "base/error.hpp"
#include "tensor/dtype.hpp"

namespace flanmoe {

/// `batch` matrices of rows x cols; element (b, i, j) is at data[(b*rows + i)*stride + j].
/// A vector over features (scale_D) has rows 1; a vector over tokens (rstd_T) has cols 1.
/// A default-made Tensor is "absent": data is null and empty() is true.
struct Tensor {
  void* data = nullptr;
  DType dtype = DType::f32;
  std::int64_t batch = 1;
  std::int64_t rows = 0;
  std::int64_t cols = 0;
  std::int64_t stride = 0;  // elements from one row to the next, at least cols

  bool absent() const { return data == nullptr; }
  std::int64_t size() const { return batch * rows * cols; }
  std::size_t bytes() const { return std::size_t(size()) * size_of(dtype); }
  bool contiguous() const { return stride == cols || (batch * rows <= 1); }

  /// Typed pointer to the first element; the type must match.
  template <class T>
  T* as() const {
    FLANMOE_EXPECT(dtype == dtype_of<T>::value || data == nullptr, "tensor holds {}, asked for {}", name_of(dtype),
                   name_of(dtype_of<T>::value));
    return static_cast<T*>(data);
  }
  /// All elements of a contiguous tensor.
  template <class T>
  std::span<T> flat() const {
    FLANMOE_EXPECT(contiguous(), "a flat view needs contiguous rows: {} columns, stride {}", cols, stride);
    return {as<T>(), std::size_t(size())};
  }
  template <class T>
  T* row(std::int64_t i) const {
    return as<T>() + i * stride;
  }

  Tensor offset_by(std::int64_t elements) const {
    Tensor t = *this;
    t.data = static_cast<char*>(data) + elements * std::int64_t(size_of(dtype));
    return t;
  }
  /// Rows [first, first+count) of a single matrix.
  Tensor slice_rows(std::int64_t first, std::int64_t count) const {
    FLANMOE_EXPECT(batch == 1 && first >= 0 && count >= 0 && first + count <= rows, "rows [{}, {}) of {}", first,
                   first + count, rows);
    Tensor t = offset_by(first * stride);
    t.rows = count;
    return t;
  }
  Tensor slice_cols(std::int64_t first, std::int64_t count) const {
    FLANMOE_EXPECT(first >= 0 && count >= 0 && first + count <= cols, "columns [{}, {}) of {}", first, first + count,
                   cols);
    Tensor t = offset_by(first);
    t.cols = count;
    return t;
  }
  /// Matrix b of a batch.
  Tensor matrix(std::int64_t b) const {
    FLANMOE_EXPECT(b >= 0 && b < batch, "matrix {} of {}", b, batch);
    Tensor t = offset_by(b * rows * stride);
    t.batch = 1;
    return t;
  }
};

/// View of `batch` x rows x cols contiguous elements at `data`.
template <class T>
Tensor make_tensor(T* data, std::int64_t rows, std::int64_t cols, std::int64_t batch = 1) {
  return {data, dtype_of<T>::value, batch, rows, cols, cols};
}

}  // namespace flanmoe
