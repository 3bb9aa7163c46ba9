// The collectives of a step between GPUs, by NCCL: what Communicator offers for host memory, for device memory and in
// the order of a stream. Calls return at once; the host waits for nothing.
#pragma once

#include <cstdint>
#include <span>

#include "kernels/cuda/runtime.hpp"
#include "parallel/communicator.hpp"

struct ncclComm;

namespace flanmoe {

/// One of them for each Communicator whose ranks exchange device memory. All ranks call every collective in the same
/// order, with or without data; the ranks are those of the host communicator, which must outlive this one.
class DeviceCommunicator {
 public:
  /// Collective over the ranks of `host`, each with a GPU of its own.
  explicit DeviceCommunicator(const Communicator& host);
  ~DeviceCommunicator();
  DeviceCommunicator(const DeviceCommunicator&) = delete;
  DeviceCommunicator& operator=(const DeviceCommunicator&) = delete;

  int rank() const { return rank_; }
  int size() const { return size_; }

  /// As Communicator::all_to_all_rows: one message for each pair of ranks, all of them in one NCCL group.
  void all_to_all_rows(KernelContext& context, const Tensor& receive, std::span<const std::int64_t> receive_rows,
                       const Tensor& send, std::span<const std::int64_t> send_rows) const;
  /// As Communicator::reduce_scatter_tree, in f32 or bf16 and with the same work: NCCL moves the contributions and a
  /// kernel adds them in the same tree, so that the bits are those of the host's sum.
  void reduce_scatter_tree(KernelContext& context, const Tensor& flat, std::span<const std::int64_t> segment_sizes,
                           const Tensor& work) const;
  /// As Communicator::all_gather_segments.
  void all_gather_segments(KernelContext& context, const Tensor& flat,
                           std::span<const std::int64_t> segment_sizes) const;
  /// In place, of a contiguous i32, f32 or f64 tensor. Order of sums is NCCL's: use for counts, minima, maxima.
  void all_reduce(KernelContext& context, const Tensor& x, ReduceOp op) const;

 private:
  void check(int code, const char* call) const;
  void reduce_by_halving(KernelContext& context, const Tensor& flat, std::span<const std::int64_t> sizes,
                         const Tensor& work, std::int64_t piece) const;
  void reduce_in_pieces(KernelContext& context, const Tensor& flat, std::span<const std::int64_t> sizes,
                        const Tensor& work, std::int64_t piece) const;
  const std::string name_;
  int rank_ = 0, size_ = 1;
  ncclComm* comm_ = nullptr;
};

}  // namespace flanmoe
