#include "tensor/checksum.hpp"

#include <zlib.h>

namespace flanmoe {

std::uint32_t checksum(const Tensor& tensor, std::uint32_t before) {
  FLANMOE_EXPECT(tensor.contiguous(), "a checksum of {} columns with stride {}", tensor.cols, tensor.stride);
  return std::uint32_t(crc32_z(before, static_cast<const Bytef*>(tensor.data), tensor.bytes()));
}

}  // namespace flanmoe
