#include "exchange/tensor_source.hpp"

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <functional>
#include <numeric>

#include "base/error.hpp"
#include "tensor/dtype.hpp"

namespace flanmoe {
namespace {

static_assert(std::endian::native == std::endian::little, "files hold little-endian numbers");

template <class Element>
Element element_at(std::span<const char> bytes, std::size_t i) {
  Element element;
  std::memcpy(&element, bytes.data() + i * sizeof(Element), sizeof(Element));
  return element;
}

/// IEEE half precision: sign, 5 bits of exponent, 10 of fraction. Every value is one of fp32.
float from_half(std::uint16_t half) {
  const std::uint32_t sign = std::uint32_t(half & 0x8000U) << 16;
  const std::uint32_t exponent = (half >> 10) & 0x1fU;
  const std::uint32_t fraction = half & 0x3ffU;
  if (exponent == 0) {  // zero and subnormal: fraction * 2^-24
    const float magnitude = std::ldexp(float(fraction), -24);
    return sign != 0 ? -magnitude : magnitude;
  }
  const std::uint32_t wide = exponent == 0x1fU ? 0xffU : exponent + 127 - 15;
  return std::bit_cast<float>(sign | (wide << 23) | (fraction << 13));
}

}  // namespace

std::int64_t StoredTensor::size() const {
  return std::accumulate(shape.begin(), shape.end(), std::int64_t{1}, std::multiplies<>());
}

std::string shape_text(std::span<const std::int64_t> shape) { return fmt::format("[{}]", fmt::join(shape, ", ")); }

void to_float(std::span<float> out, std::span<const char> bytes, const StoredTensor& tensor, std::string_view name) {
  const std::size_t width = tensor.type == ElementType::f32 ? 4 : 2;
  if (tensor.type != ElementType::other) {
    FLANMOE_EXPECT(bytes.size() == width * out.size(), "{} bytes for {} elements of {}", bytes.size(), out.size(),
                   name);
  }
  switch (tensor.type) {
    case ElementType::f32: std::memcpy(out.data(), bytes.data(), bytes.size()); return;
    case ElementType::bf16:
      for (std::size_t i = 0; i < out.size(); ++i) out[i] = float(element_at<bf16>(bytes, i));
      return;
    case ElementType::f16:
      for (std::size_t i = 0; i < out.size(); ++i) out[i] = from_half(element_at<std::uint16_t>(bytes, i));
      return;
    case ElementType::other: break;
  }
  fail("{}: tensor {} holds elements of type {}; expected fp32, bf16 or fp16", tensor.file, name, tensor.type_name);
}

void transpose(std::span<float> out, std::span<const float> in, std::int64_t rows, std::int64_t cols) {
  constexpr std::int64_t kTile = 32;  // so that both sides stay in cache
  for (std::int64_t i0 = 0; i0 < rows; i0 += kTile) {
    for (std::int64_t j0 = 0; j0 < cols; j0 += kTile) {
      for (std::int64_t i = i0; i < std::min(rows, i0 + kTile); ++i) {
        for (std::int64_t j = j0; j < std::min(cols, j0 + kTile); ++j) {
          out[std::size_t(j * rows + i)] = in[std::size_t(i * cols + j)];
        }
      }
    }
  }
}

}  // namespace flanmoe
