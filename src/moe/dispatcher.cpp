#include "moe/dispatcher.hpp"

#include <algorithm>
#include <numeric>

#include "base/timer.hpp"

namespace flanmoe {

void DispatchRecord::lay(Arena& arena, std::int64_t ranks, std::int64_t local_experts, std::int64_t received_limit) {
  send_rows.assign(std::size_t(ranks), 0);
  receive_rows.assign(std::size_t(ranks), 0);
  first.assign(std::size_t(local_experts) + 1, 0);
  first_of_source.assign(std::size_t(local_experts * ranks) + 1, 0);
  arrival_R = arena.allocate(DType::i32, ranks > 1 ? received_limit : 0, 1);
}

Dispatcher::Dispatcher(const Communicator& expert_group, const MoeDeck& moe)
    : group_(expert_group),
      experts_(moe.experts),
      send_count_(std::size_t(moe.experts), 0),
      receive_count_(std::size_t(moe.experts), 0) {}

void Dispatcher::lay(Arena& arena, const TransferKernels& transfer, DType compute, std::int64_t received,
                     std::int64_t width) {
  arrival_RD_ = arena.allocate(compute, local() ? 0 : received, width);
  arrivals_.emplace(transfer).reserve(std::size_t(arrival_RD_.rows) * sizeof(std::int32_t));
}

void Dispatcher::plan(const LayerContext& c, DispatchRecord& record, std::span<const std::int64_t> kept_E,
                      std::int64_t row_limit) {
  const PartScope part(Part::routing);
  const auto ranks = std::size_t(group_.size());
  const std::size_t local_experts = std::size_t(experts_) / ranks;
  std::copy(kept_E.begin(), kept_E.end(), send_count_.begin());
  if (local()) {
    receive_count_ = send_count_;
  } else {
    group_.all_to_all<std::int64_t>(receive_count_, send_count_);
  }
  for (std::size_t r = 0; r < ranks; ++r) {
    const auto sum = [&](const std::vector<std::int64_t>& v) {
      const auto begin = v.begin() + std::ptrdiff_t(r * local_experts);
      return std::accumulate(begin, begin + std::ptrdiff_t(local_experts), std::int64_t{0});
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
  for (std::size_t e = 0; e < local_experts; ++e) {
    std::int64_t row = record.first[e];
    for (std::size_t r = 0; r < ranks; ++r) {
      row += receive_count_[r * local_experts + e];
      record.first_of_source[e * ranks + r + 1] = row;
    }
    record.first[e + 1] = row;
  }
  if (local()) return;
  // Arrival order is (source rank, expert, row); expert order is (expert, source rank, row).
  const Tensor arrival_R = first_rows(record.arrival_R, record.received);
  auto* arrival = arrivals_->like(arrival_R).as<std::int32_t>();
  for (std::size_t e = 0; e < local_experts; ++e) {
    std::int64_t start = 0;
    for (std::size_t r = 0; r < ranks; ++r) {
      const std::int64_t* source = &receive_count_[r * local_experts];
      const std::int64_t begin = std::accumulate(source, source + e, start);
      for (std::int64_t i = 0; i < source[e]; ++i) *arrival++ = std::int32_t(begin + i);
      start += record.receive_rows[r];
    }
  }
  arrivals_->write(c.context, arrival_R);
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
