#include "moe/dispatcher.hpp"

#include <algorithm>
#include <numeric>

#include "base/timer.hpp"
#include "moe/routing.hpp"

namespace flanmoe {

namespace {

/// Of one chunk.
std::span<const RowRange> of_chunk(const std::vector<RowRange>& rows, const DispatchRecord& record,
                                   std::int64_t chunk) {
  const std::size_t ranks = rows.size() / std::size_t(record.chunks());
  return std::span(rows).subspan(std::size_t(chunk) * ranks, ranks);
}

}  // namespace

void DispatchRecord::lay(Arena& arena, std::int64_t ranks, std::int64_t local_experts, std::int64_t leaves,
                         std::int64_t received_limit, std::int64_t chunks) {
  send_rows.assign(std::size_t(chunks * ranks), {});
  receive_rows.assign(std::size_t(chunks * ranks), {});
  chunk_first.clear();
  for (std::int64_t chunk = 0; chunk <= chunks; ++chunk) chunk_first.push_back(chunk * local_experts / chunks);
  first.assign(std::size_t(local_experts) + 1, 0);
  leaf_first.assign(std::size_t(local_experts * ranks * leaves) + 1, 0);
  arrival_R = arena.allocate(DType::i32, ranks > 1 ? received_limit : 0, 1);
}

RowRange DispatchRecord::rows_of(std::int64_t chunk) const {
  const std::int64_t begin = first[std::size_t(chunk_first[std::size_t(chunk)])];
  return {begin, first[std::size_t(chunk_first[std::size_t(chunk) + 1])] - begin};
}

Dispatcher::Dispatcher(const Communicator& expert_group, const Deck& deck)
    : group_(expert_group),
      experts_(deck.moe.experts),
      pending_(std::size_t(dispatch_chunks(deck, expert_group.size()))) {}

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

/// The rows of each chunk that this rank sends to every rank and receives from it.
void Dispatcher::cut_rows(DispatchRecord& record, std::size_t leaves) const {
  const auto ranks = std::size_t(group_.size());
  const std::size_t local_experts = std::size_t(experts_) / ranks;
  // Copies of experts [begin, end) of rank r, or from rank r for those of this rank.
  const auto sum = [&](const std::vector<std::int64_t>& count, std::size_t r, std::int64_t begin, std::int64_t end) {
    const auto of_rank = count.begin() + std::ptrdiff_t(r * local_experts * leaves);
    return std::accumulate(of_rank + begin * std::ptrdiff_t(leaves), of_rank + end * std::ptrdiff_t(leaves),
                           std::int64_t{0});
  };
  const auto chunks = std::size_t(record.chunks());
  std::int64_t arrived = 0, sent = 0;
  for (std::size_t chunk = 0; chunk < chunks; ++chunk) {
    for (std::size_t r = 0; r < ranks; ++r) {
      const std::int64_t count = sum(receive_count_, r, record.chunk_first[chunk], record.chunk_first[chunk + 1]);
      record.receive_rows[chunk * ranks + r] = {arrived, count};
      arrived += count;
    }
  }
  for (std::size_t r = 0; r < ranks; ++r) {
    for (std::size_t chunk = 0; chunk < chunks; ++chunk) {
      const std::int64_t count = sum(send_count_, r, record.chunk_first[chunk], record.chunk_first[chunk + 1]);
      record.send_rows[chunk * ranks + r] = {sent, count};
      sent += count;
    }
  }
  record.sent = sent;
  record.received = arrived;
}

/// Arrival order is (chunk, source rank, expert, row); expert order is (expert, source rank, row).
void Dispatcher::order_arrivals(const LayerContext& c, const DispatchRecord& record, std::size_t leaves) {
  const auto ranks = std::size_t(group_.size());
  const std::size_t local_experts = std::size_t(experts_) / ranks;
  const Tensor arrival_R = first_rows(record.arrival_R, record.received);
  auto* arrival = arrivals_->like(arrival_R).as<std::int32_t>();
  for (std::size_t chunk = 0; chunk < std::size_t(record.chunks()); ++chunk) {
    const auto begin = std::size_t(record.chunk_first[chunk]), end = std::size_t(record.chunk_first[chunk + 1]);
    for (std::size_t e = begin; e < end; ++e) {
      for (std::size_t r = 0; r < ranks; ++r) {
        const std::int64_t* source = &receive_count_[r * local_experts * leaves];
        std::int64_t row =
            std::accumulate(source + begin * leaves, source + e * leaves, record.receive_rows[chunk * ranks + r].first);
        const std::int64_t last = std::accumulate(source + e * leaves, source + (e + 1) * leaves, row);
        for (; row < last; ++row) *arrival++ = std::int32_t(row);
      }
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
  cut_rows(record, leaves);
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

void Dispatcher::send(const Tensor& row_ND, const DispatchRecord& record) {
  if (local()) return;
  const PartScope part(Part::routing);
  const Tensor arrival_RD = first_rows(arrival_RD_, record.received);
  for (std::int64_t chunk = 0; chunk < record.chunks(); ++chunk) {
    pending_[std::size_t(chunk)] = group_.start_all_to_all_rows(
        arrival_RD, of_chunk(record.receive_rows, record, chunk), row_ND, of_chunk(record.send_rows, record, chunk));
  }
}

void Dispatcher::receive(const LayerContext& c, const Tensor& row_RD, const DispatchRecord& record,
                         std::int64_t chunk) {
  if (local()) return;
  const PartScope part(Part::routing);
  pending_[std::size_t(chunk)].finish();
  const RowRange rows = record.rows_of(chunk);
  c.k.permute.gather(c.context, row_RD.slice_rows(rows.first, rows.count), first_rows(arrival_RD_, record.received),
                     record.arrival_R.slice_rows(rows.first, rows.count));
}

void Dispatcher::send_back(const LayerContext& c, const Tensor& row_ND, const Tensor& row_RD,
                           const DispatchRecord& record, std::int64_t chunk) {
  if (local()) {
    FLANMOE_EXPECT(row_ND.data == row_RD.data, "rows of {} experts on one rank in two places", experts_);
    return;
  }
  const PartScope part(Part::routing);
  const Tensor arrival_RD = first_rows(arrival_RD_, record.received);
  const RowRange rows = record.rows_of(chunk);
  c.k.permute.scatter(c.context, arrival_RD, row_RD.slice_rows(rows.first, rows.count),
                      record.arrival_R.slice_rows(rows.first, rows.count));
  pending_[std::size_t(chunk)] = group_.start_all_to_all_rows(row_ND, of_chunk(record.send_rows, record, chunk),
                                                              arrival_RD, of_chunk(record.receive_rows, record, chunk));
}

void Dispatcher::receive_back() {
  for (Pending& exchange : pending_) exchange.finish();
}

}  // namespace flanmoe
