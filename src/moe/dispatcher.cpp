#include "moe/dispatcher.hpp"

#include <algorithm>
#include <numeric>

#include "base/timer.hpp"

namespace flanmoe {

void DispatchRecord::lay(Arena& arena, std::int64_t ranks, std::int64_t local_experts, std::int64_t leaves,
                         std::int64_t received_limit) {
  send_rows.assign(std::size_t(ranks), 0);
  receive_rows.assign(std::size_t(ranks), 0);
  first.assign(std::size_t(local_experts) + 1, 0);
  leaf_first.assign(std::size_t(local_experts * ranks * leaves) + 1, 0);
  arrival_R = arena.allocate(DType::i32, ranks > 1 ? received_limit : 0, 1);
}

Dispatcher::Dispatcher(const Communicator& expert_group, const MoeDeck& moe)
    : group_(expert_group), experts_(moe.experts) {}

void Dispatcher::lay(Arena& arena, const TransferKernels& transfer, DType compute, std::int64_t received,
                     std::int64_t width, std::int64_t leaves) {
  arrival_RD_ = arena.allocate(compute, local() ? 0 : received, width);
  arrivals_.emplace(transfer).reserve(std::size_t(arrival_RD_.rows) * sizeof(std::int32_t));
  for (auto* counts : {&send_count_, &receive_count_}) counts->reserve(std::size_t(experts_ * leaves));
}

/// The copies of an expert stand in the order of their tokens, so those of a leaf stand together.
void Dispatcher::count_copies(const LayerContext& c, std::span<const std::int64_t> kept_E, const Tensor& token_N,
                              std::span<const std::int64_t> leaf_token) {
  const auto leaves = std::size_t(leaf_count(leaf_token));
  send_count_.assign(kept_E.size() * leaves, 0);
  if (leaves == 1) {
    std::copy(kept_E.begin(), kept_E.end(), send_count_.begin());
    return;
  }
  FLANMOE_EXPECT(c.k.transfer.host_reaches(), "{} leaves of a microbatch on a device", leaves);
  const std::int32_t* token = token_N.as<std::int32_t>();
  for (std::size_t e = 0; e < kept_E.size(); ++e) {
    std::size_t leaf = 0;
    for (std::int64_t i = 0; i < kept_E[e]; ++i, ++token) {
      FLANMOE_EXPECT(*token >= leaf_token[leaf], "copies of expert {} are not in the order of their tokens", e);
      while (*token >= leaf_token[leaf + 1]) ++leaf;
      send_count_[e * leaves + leaf] += 1;
    }
  }
}

/// Arrival order is (source rank, expert, row); expert order is (expert, source rank, row).
void Dispatcher::order_arrivals(const LayerContext& c, const DispatchRecord& record, std::size_t leaves) {
  const auto ranks = std::size_t(group_.size());
  const std::size_t local_experts = std::size_t(experts_) / ranks;
  const Tensor arrival_R = first_rows(record.arrival_R, record.received);
  auto* arrival = arrivals_->like(arrival_R).as<std::int32_t>();
  for (std::size_t e = 0; e < local_experts; ++e) {
    std::int64_t start = 0;
    for (std::size_t r = 0; r < ranks; ++r) {
      const std::int64_t* source = &receive_count_[r * local_experts * leaves];
      const std::int64_t begin = std::accumulate(source, source + e * leaves, start);
      const std::int64_t end = std::accumulate(source + e * leaves, source + (e + 1) * leaves, begin);
      for (std::int64_t row = begin; row < end; ++row) *arrival++ = std::int32_t(row);
      start += record.receive_rows[r];
    }
  }
  arrivals_->write(c.context, arrival_R);
}

void Dispatcher::plan(const LayerContext& c, DispatchRecord& record, std::span<const std::int64_t> kept_E,
                      const Tensor& token_N, std::span<const std::int64_t> leaf_token, std::int64_t row_limit) {
  const PartScope part(Part::routing);
  const auto ranks = std::size_t(group_.size());
  const std::size_t local_experts = std::size_t(experts_) / ranks;
  const auto leaves = std::size_t(leaf_count(leaf_token));
  count_copies(c, kept_E, token_N, leaf_token);
  receive_count_ = send_count_;
  if (!local()) group_.all_to_all<std::int64_t>(receive_count_, send_count_);
  for (std::size_t r = 0; r < ranks; ++r) {
    const auto sum = [&](const std::vector<std::int64_t>& v) {
      const auto begin = v.begin() + std::ptrdiff_t(r * local_experts * leaves);
      return std::accumulate(begin, begin + std::ptrdiff_t(local_experts * leaves), std::int64_t{0});
    };
    record.send_rows[r] = sum(send_count_);
    record.receive_rows[r] = sum(receive_count_);
  }
  record.sent = std::accumulate(send_count_.begin(), send_count_.end(), std::int64_t{0});
  record.received = std::accumulate(receive_count_.begin(), receive_count_.end(), std::int64_t{0});
  if (record.received > row_limit) {
    fail(
        "{} rows were routed to the experts of this rank and its buffers hold {}: raise moe.buffer_factor, or set it "
        "to "
        "0 for the worst case",
        record.received, row_limit);
  }
  std::int64_t row = 0;
  std::size_t next = 1;
  for (std::size_t e = 0; e < local_experts; ++e) {
    for (std::size_t r = 0; r < ranks; ++r) {
      for (std::size_t leaf = 0; leaf < leaves; ++leaf) {
        row += receive_count_[(r * local_experts + e) * leaves + leaf];
        record.leaf_first[next++] = row;
      }
    }
    record.first[e + 1] = row;
  }
  if (!local()) order_arrivals(c, record, leaves);
}

void Dispatcher::send(const LayerContext& c, const Tensor& row_RD, const Tensor& row_ND, const DispatchRecord& record) {
  const PartScope part(Part::routing);
  if (local()) {
    if (row_RD.data != row_ND.data) c.k.elementwise.convert(c.context, row_RD, row_ND);
    return;
  }
  const Tensor arrival_RD = first_rows(arrival_RD_, record.received);
  group_.all_to_all_rows(arrival_RD, record.receive_rows, row_ND, record.send_rows);
  c.k.permute.gather(c.context, row_RD, arrival_RD, first_rows(record.arrival_R, record.received));
}

void Dispatcher::send_back(const LayerContext& c, const Tensor& row_ND, const Tensor& row_RD,
                           const DispatchRecord& record) {
  const PartScope part(Part::routing);
  if (local()) {
    if (row_RD.data != row_ND.data) c.k.elementwise.convert(c.context, row_ND, row_RD);
    return;
  }
  const Tensor arrival_RD = first_rows(arrival_RD_, record.received);
  c.k.permute.scatter(c.context, arrival_RD, row_RD, first_rows(record.arrival_R, record.received));
  group_.all_to_all_rows(row_ND, record.send_rows, arrival_RD, record.receive_rows);
}

}  // namespace flanmoe
