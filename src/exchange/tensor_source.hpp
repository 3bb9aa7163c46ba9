// Named tensors in the files of another program.
#pragma once

#include <cstdint>
#include <map>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace flanmoe {

enum class ElementType : std::uint8_t { f32, bf16, f16, other };

struct StoredTensor {
  ElementType type = ElementType::other;
  std::string type_name;            // as the file calls it
  std::vector<std::int64_t> shape;  // [] for a scalar
  std::string file;
  std::uint64_t offset = 0, bytes = 0;  // in the file

  std::int64_t size() const;
};

using TensorTable = std::map<std::string, StoredTensor, std::less<>>;

class TensorSource {
 public:
  virtual ~TensorSource() = default;
  virtual const TensorTable& tensors() const = 0;
  /// All elements as fp32, exactly. Throws Error naming file and tensor when the elements are of another kind than
  /// fp32, bf16 or fp16, or cannot be read. `out` has the size of the tensor.
  virtual void read(std::string_view name, std::span<float> out) const = 0;
};

/// "[2, 3]"
std::string shape_text(std::span<const std::int64_t> shape);
/// Little-endian elements to fp32; other types are refused.
void to_float(std::span<float> out, std::span<const char> bytes, const StoredTensor& tensor, std::string_view name);
/// out = transpose of in; in is rows x cols.
void transpose(std::span<float> out, std::span<const float> in, std::int64_t rows, std::int64_t cols);

}  // namespace flanmoe
