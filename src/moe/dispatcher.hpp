// Moves routed rows to the ranks that hold their experts, and back.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <vector>

#include "moe/layer_context.hpp"
#include "parallel/communicator.hpp"

namespace flanmoe {

/// What one dispatch did: all that the way back and the backward pass need. The experts of a rank are cut into chunks
/// of consecutive experts (dispatch_chunks()), whose rows travel on their own.
struct DispatchRecord {
  std::int64_t sent = 0, received = 0;  // rows
  /// By chunk and rank of the expert group. Rows are sent from expert order; they arrive in the order (chunk, source
  /// rank, expert, row), so that the rows of a chunk are the same range in the order of arrival and in expert order.
  std::vector<RowRange> send_rows, receive_rows;
  std::vector<std::int64_t> chunk_first;  // chunks + 1: local experts of each
  std::vector<std::int64_t> first;        // local experts + 1: rows of each in expert order
  /// Local experts * ranks * leaves + 1: rows of each expert by source rank and by leaf of that rank's microbatch.
  std::vector<std::int64_t> leaf_first;
  Tensor arrival_R;  // i32: expert-ordered row r arrived as row arrival[r]

  void lay(Arena& arena, std::int64_t ranks, std::int64_t local_experts, std::int64_t leaves, std::int64_t received,
           std::int64_t chunks);
  std::int64_t chunks() const { return std::int64_t(chunk_first.size()) - 1; }
  /// Rows of a chunk in expert order.
  RowRange rows_of(std::int64_t chunk) const;
};

/// On one rank rows in expert order are already where they belong: moves do nothing, and both ends of one are the same
/// memory. That is the reference for the all-to-all over several ranks. Rows of an expert stand in the order (source
/// rank, token, choice), which for consecutive rows of the batch on consecutive ranks is the order of one rank,
/// whatever the number of chunks. Between devices exchanges run beside what is computed (Pending).
class Dispatcher {
 public:
  Dispatcher(const Communicator& expert_group, const Deck& deck);

  bool local() const { return group_.size() == 1; }
  void lay(Arena& arena, const TransferKernels& transfer, DType compute, std::int64_t received, std::int64_t width,
           std::int64_t leaves);

  /// Exchanges the counts of kept copies by expert, leaf by leaf of the tokens; every rank has the same number of
  /// leaves. token_N: i32, the token of each copy, in expert order; read where there are several leaves, which the host
  /// must reach then. Collective. Throws Error naming moe.buffer_factor when more rows arrive than the buffers hold.
  void plan(const LayerContext&, DispatchRecord& record, std::span<const std::int64_t> kept_E, const Tensor& token_N,
            std::span<const std::int64_t> leaf_token, std::int64_t row_limit);
  /// Starts to send this rank's copies (row_ND, in expert order) to their experts, chunk after chunk.
  void send(const Tensor& row_ND, const DispatchRecord& record);
  /// Finishes the exchange of a chunk: its rows of row_RD = those of all ranks for its experts, in expert order.
  void receive(const LayerContext&, const Tensor& row_RD, const DispatchRecord& record, std::int64_t chunk);
  /// Starts to send the rows of a chunk, which was received, back: the inverse of both moves, and their backward, as
  /// they are the backward of this one. All of row_ND is there after receive_back(). It may be what was sent: the rows
  /// of other chunks stand elsewhere.
  void send_back(const LayerContext&, const Tensor& row_ND, const Tensor& row_RD, const DispatchRecord& record,
                 std::int64_t chunk);
  void receive_back();

 private:
  void count_copies(const LayerContext&, std::span<const std::int64_t> kept_E, const Tensor& token_N,
                    std::span<const std::int64_t> leaf_token);
  void cut_rows(DispatchRecord& record, std::size_t leaves) const;
  void order_arrivals(const LayerContext&, const DispatchRecord& record, std::size_t leaves);

  const Communicator& group_;
  std::int64_t experts_;
  Tensor arrival_RD_;  // rows in order of arrival
  /// By expert and leaf: for each rank those of its experts, and from each rank those of this rank's.
  std::vector<std::int64_t> send_count_, receive_count_;
  std::vector<Pending> pending_;      // exchanges of each chunk
  std::optional<HostRoom> arrivals_;  // where the host fills DispatchRecord::arrival_R
};

}  // namespace flanmoe
