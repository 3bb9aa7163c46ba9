#include <algorithm>

#include "kernels/cuda/runtime.hpp"
#include "kernels/elementwise.hpp"
#include "kernels/transfer.hpp"
#include "kernels/transfer_checks.hpp"

namespace flanmoe::cuda {
namespace {

constexpr std::int64_t kPiece = std::int64_t{1} << 17;  // elements that are converted at one time

/// Elements [first, first + count) of a contiguous tensor.
Tensor piece_of(const Tensor& t, std::int64_t first, std::int64_t count) {
  return {static_cast<char*>(t.data) + std::size_t(first) * size_of(t.dtype), t.dtype, 1, 1, count, count};
}

void upload_tensor(KernelContext& context, const Tensor& to, const Tensor& from) {
  expect_transfer(to, from);
  if (to.size() == 0) return;
  if (to.dtype == from.dtype) {
    context.staging->upload(stream_of(context), to.data, from.data, to.bytes());
    return;
  }
  for (std::int64_t first = 0; first < to.size(); first += kPiece) {
    const std::int64_t count = std::min(kPiece, to.size() - first);
    Tensor piece = piece_of(from, first, count);
    piece.data = context.staging->list(stream_of(context), piece.data, piece.bytes());
    elementwise_kernels.convert(context, piece_of(to, first, count), piece);
  }
}

void download_tensor(KernelContext& context, const Tensor& to, const Tensor& from) {
  expect_transfer(to, from);
  expect_same_type(to, from);
  if (to.size() > 0) context.staging->download(stream_of(context), to.data, from.data, to.bytes());
}

}  // namespace

const TransferKernels transfer_kernels = {&device_memory, upload_tensor, download_tensor};

}  // namespace flanmoe::cuda
