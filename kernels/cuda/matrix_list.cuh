// One launch over a list of matrices: which block works on which of them.
#pragma once

#include <vector>

#include "kernels/cuda/device.cuh"

namespace flanmoe::cuda {

/// Place of a block of a launch: the matrix, and the block's number among those of the matrix.
struct BlockPlace {
  int matrix;
  std::int64_t block;
};

/// As kernels get it.
struct BlockMap {
  const std::int64_t* first;  // of every matrix, ascending
  int matrices;

  __device__ BlockPlace place() const {
    const std::int64_t block = blockIdx.x;
    int low = 0, high = matrices;
    while (high - low > 1) {
      const int middle = (low + high) / 2;
      if (first[middle] <= block) {
        low = middle;
      } else {
        high = middle;
      }
    }
    return {low, block - first[low]};
  }
};

/// Blocks of the matrices of a list, as the host counts them.
class BlockCount {
 public:
  void add(std::int64_t blocks) {
    first_.push_back(total_);
    total_ += blocks;
  }
  BlockMap upload(KernelContext& context) const {
    return {cuda::upload(context, std::span(first_)), int(first_.size())};
  }
  unsigned total() const { return unsigned(total_); }

 private:
  std::vector<std::int64_t> first_;
  std::int64_t total_ = 0;
};

/// Matrices of one launch, so that lists fit into the staging memory; and bytes of scratch for them, unless a single
/// one takes more.
inline constexpr std::size_t kMostMatrices = 1024;
inline constexpr std::size_t kListScratch = std::size_t{8} << 20;

/// Calls run(part) for parts of a list, in order; bytes(item): scratch that an item takes.
template <class T, class Bytes, class Run>
void for_parts(std::span<const T> list, Bytes&& bytes, Run&& run) {
  for (std::size_t begin = 0, end = 0; begin < list.size(); begin = end) {
    std::size_t taken = 0;
    do {
      taken += bytes(list[end++]);
    } while (end < list.size() && end - begin < kMostMatrices && taken + bytes(list[end]) <= kListScratch);
    run(list.subspan(begin, end - begin));
  }
}

inline __host__ __device__ constexpr std::int64_t tiles_of(std::int64_t n, std::int64_t tile) {
  return (n + tile - 1) / tile;
}

}  // namespace flanmoe::cuda
