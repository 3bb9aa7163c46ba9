// The collectives of a step between GPUs, by NCCL: what Communicator offers for host memory, for device memory and on a
// stream of its own. Calls return at once; the host waits only where two ranks meet for the first time and NCCL
// connects them.
#pragma once

#include <cstdint>
#include <deque>
#include <span>
#include <vector>

#include "kernels/cuda/runtime.hpp"
#include "parallel/communicator.hpp"
#include "parallel/tensor_transport.hpp"

struct ncclComm;

namespace flanmoe {

/// One of them for each Communicator whose ranks exchange device memory. All ranks call every collective in the same
/// order, with or without data; the ranks are those of the host communicator.
class DeviceCommunicator : public TensorTransport {
 public:
  /// Collective over the ranks of `host`, each with a GPU of its own. Collectives run on stream `communication`, behind
  /// what is queued on `compute` when they are started; work that is queued there after their finish waits for them.
  DeviceCommunicator(const Communicator& host, cudaStream_t compute, cudaStream_t communication);
  ~DeviceCommunicator() override;

  int rank() const { return rank_; }
  int size() const { return size_; }

  /// As Communicator::all_to_all_rows: one message for each pair of ranks, all of them in one NCCL group.
  Ticket start_all_to_all_rows(const Tensor& receive, std::span<const RowRange> receive_rows, const Tensor& send,
                               std::span<const RowRange> send_rows) const override;
  /// As Communicator::reduce_scatter_tree, in f32 or bf16 and with the same work: NCCL moves the contributions and a
  /// kernel adds them in the same tree, so that the bits are those of the host's sum.
  Ticket start_reduce_scatter_tree(const Tensor& flat, std::span<const std::int64_t> segment_sizes,
                                   const Tensor& work) const override;
  /// As Communicator::all_gather_segments.
  Ticket start_all_gather_segments(const Tensor& flat, std::span<const std::int64_t> segment_sizes) const override;
  /// In place, of a contiguous i32, f32 or f64 tensor. Order of sums is NCCL's: use for counts, minima, maxima.
  Ticket start_all_reduce(const Tensor& x, ReduceOp op) const;
  void finish(Ticket ticket) const override;

 private:
  void check(int code, const char* call) const;
  template <class F>
  Ticket start(const F& collective) const;
  void exchange_rows(const Tensor& receive, std::span<const RowRange> receive_rows, const Tensor& send,
                     std::span<const RowRange> send_rows) const;
  void gather_segments(const Tensor& flat, std::span<const std::int64_t> sizes) const;
  void reduce_by_halving(const Tensor& flat, std::span<const std::int64_t> sizes, const Tensor& work,
                         std::int64_t piece) const;
  void reduce_in_pieces(const Tensor& flat, std::span<const std::int64_t> sizes, const Tensor& work,
                        std::int64_t piece) const;
  const std::string name_;
  int rank_ = 0, size_ = 1;
  cudaStream_t compute_, stream_;
  cuda::Event computed_;                  // what a collective that starts waits for
  mutable std::deque<cuda::Event> done_;  // by ticket: when the collective is over
  mutable std::vector<Ticket> free_;      // tickets of nobody
  ncclComm* comm_ = nullptr;
};

}  // namespace flanmoe
