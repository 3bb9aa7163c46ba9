// Moves routed rows to the ranks that hold their experts, and back.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <vector>

#include "moe/layer_context.hpp"
#include "parallel/communicator.hpp"

namespace flanmoe {

/// What one dispatch did: all that the way back and the backward pass need.
struct DispatchRecord {
  std::int64_t sent = 0, received = 0;                // rows
  std::vector<std::int64_t> send_rows, receive_rows;  // per rank of the expert group
  std::vector<std::int64_t> first;                    // local experts + 1: rows of each in expert order
  /// Local experts * ranks * leaves + 1: rows of each expert by source rank and by leaf of that rank's microbatch.
  std::vector<std::int64_t> leaf_first;
  Tensor arrival_R;  // i32: expert-ordered row r arrived as row arrival[r]

  void lay(Arena& arena, std::int64_t ranks, std::int64_t local_experts, std::int64_t leaves, std::int64_t received);
};

/// On one rank rows in expert order are already where they belong and the moves are plain copies: that is the reference
/// for the all-to-all over several ranks. Rows of an expert stand in the order (source rank, token, choice), which for
/// consecutive rows of the batch on consecutive ranks is the order of one rank.
class Dispatcher {
 public:
  Dispatcher(const Communicator& expert_group, const MoeDeck& moe);

  bool local() const { return group_.size() == 1; }
  void lay(Arena& arena, const TransferKernels& transfer, DType compute, std::int64_t received, std::int64_t width,
           std::int64_t leaves);

  /// Exchanges the counts of kept copies by expert, leaf by leaf of the tokens; every rank has the same number of
  /// leaves. token_N: i32, the token of each copy, in expert order; read where there are several leaves, which the host
  /// must reach then. Collective. Throws Error naming moe.buffer_factor when more rows arrive than the buffers hold.
  void plan(const LayerContext&, DispatchRecord& record, std::span<const std::int64_t> kept_E, const Tensor& token_N,
            std::span<const std::int64_t> leaf_token, std::int64_t row_limit);
  /// row_RD = rows of all ranks for this rank's experts, in expert order. row_ND: this rank's copies in expert order.
  void send(const LayerContext&, const Tensor& row_RD, const Tensor& row_ND, const DispatchRecord& record);
  /// The inverse move; also the backward of send, as send is the backward of this.
  void send_back(const LayerContext&, const Tensor& row_ND, const Tensor& row_RD, const DispatchRecord& record);

 private:
  void count_copies(const LayerContext&, std::span<const std::int64_t> kept_E, const Tensor& token_N,
                    std::span<const std::int64_t> leaf_token);
  void order_arrivals(const LayerContext&, const DispatchRecord& record, std::size_t leaves);

  const Communicator& group_;
  std::int64_t experts_;
  Tensor arrival_RD_;  // rows in order of arrival
  /// By expert and leaf: for each rank those of its experts, and from each rank those of this rank's.
  std::vector<std::int64_t> send_count_, receive_count_;
  std::optional<HostRoom> arrivals_;  // where the host fills DispatchRecord::arrival_R
};

}  // namespace flanmoe
