// One checksum for whatever is compared or verified bit by bit.
#pragma once

#include <cstdint>

#include "tensor/tensor.hpp"

namespace flanmoe {

/// CRC-32 (zlib) of the bytes of a contiguous tensor in memory of the host, behind those that gave `before`.
std::uint32_t checksum(const Tensor& tensor, std::uint32_t before = 0);

}  // namespace flanmoe
