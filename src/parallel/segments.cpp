// The collectives with a count for every rank: rows of tokens, segments of gradients and weights.
#include "parallel/segments.hpp"

#include <algorithm>
#include <bit>
#include <cstring>
#include <numeric>
#include <type_traits>
#include <utility>

#include "parallel/communicator.hpp"
#include "parallel/halving.hpp"
#include "parallel/mpi_type.hpp"
#include "parallel/tree.hpp"

namespace flanmoe {

using detail::Collective;
using detail::Datatype;
using detail::largest_count;
using detail::mpi_type;
using detail::ReducePlan;

namespace {

std::int64_t sum_of(std::span<const std::int64_t> counts) {
  return std::accumulate(counts.begin(), counts.end(), std::int64_t{0});
}

std::int64_t sum_of(std::span<const RowRange> rows) {
  return std::accumulate(rows.begin(), rows.end(), std::int64_t{0},
                         [](std::int64_t sum, const RowRange& range) { return sum + range.count; });
}

/// Other ranks that get something.
std::uint64_t receivers(std::span<const std::int64_t> counts, int rank) {
  const auto some = std::uint64_t(std::count_if(counts.begin(), counts.end(), [](auto n) { return n > 0; }));
  return some - (counts[std::size_t(rank)] > 0 ? 1 : 0);
}
std::uint64_t receivers(std::span<const RowRange> rows, int rank) {
  const auto some = std::uint64_t(std::count_if(rows.begin(), rows.end(), [](const auto& r) { return r.count > 0; }));
  return some - (rows[std::size_t(rank)].count > 0 ? 1 : 0);
}

void expect_rows(const Tensor& tensor, std::span<const RowRange> rows, int size, const char* what) {
  FLANMOE_EXPECT(tensor.contiguous(), "{}: rows of {} columns with stride {}", what, tensor.cols, tensor.stride);
  FLANMOE_EXPECT(std::int64_t(rows.size()) == size, "{}: {} counts for {} ranks", what, rows.size(), size);
  const std::int64_t all = tensor.batch * tensor.rows;
  for (const RowRange& range : rows) {
    const std::int64_t end = range.first + range.count;
    FLANMOE_EXPECT(range.first >= 0 && range.count >= 0 && end <= all && end <= largest_count,
                   "{}: rows [{}, {}), the tensor has {}", what, range.first, end, all);
  }
}

void expect_segments(const Tensor& flat, std::span<const std::int64_t> sizes, int size) {
  FLANMOE_EXPECT(flat.contiguous(), "segments of a buffer with stride {}, columns {}", flat.stride, flat.cols);
  FLANMOE_EXPECT(std::int64_t(sizes.size()) == size, "{} segments for {} ranks", sizes.size(), size);
  FLANMOE_EXPECT(sum_of(sizes) == flat.size(), "segments of {} elements in all, the buffer has {}", sum_of(sizes),
                 flat.size());
}

/// Writes counts and the displacements that go with them as MPI wants them.
void lay_counts(int* counts, int* displacements, std::span<const std::int64_t> rows) {
  std::int64_t at = 0;
  for (std::size_t r = 0; r < rows.size(); ++r) {
    counts[r] = int(rows[r]);
    displacements[r] = int(at);
    at += rows[r];
  }
}

}  // namespace

void Communicator::all_to_all_rows(const Tensor& receive, std::span<const std::int64_t> receive_rows,
                                   const Tensor& send, std::span<const std::int64_t> send_rows) const {
  ranges_.clear();
  for (const auto& rows : {receive_rows, send_rows}) {
    std::int64_t at = 0;
    for (const std::int64_t count : rows) {
      ranges_.push_back({at, count});
      at += count;
    }
  }
  const std::span<const RowRange> ranges(ranges_);
  start_all_to_all_rows(receive, ranges.first(receive_rows.size()), send, ranges.subspan(receive_rows.size())).finish();
}

Pending Communicator::start_all_to_all_rows(const Tensor& receive, std::span<const RowRange> receive_rows,
                                            const Tensor& send, std::span<const RowRange> send_rows) const {
  const Collective scope("all_to_all_rows", name_);
  expect_rows(receive, receive_rows, size_, "receive");
  expect_rows(send, send_rows, size_, "send");
  FLANMOE_EXPECT(receive.dtype == send.dtype && receive.cols == send.cols && send.cols <= largest_count,
                 "rows of {} {} sent, of {} {} received", send.cols, name_of(send.dtype), receive.cols,
                 name_of(receive.dtype));
  const std::int64_t kept = send_rows[std::size_t(rank_)].count;
  if (!counted(CollectiveKind::all_to_all_rows, receivers(send_rows, rank_),
               std::uint64_t((sum_of(send_rows) - kept) * send.cols) * size_of(send.dtype))) {
    return {};
  }
  if (transport_) return {*transport_, transport_->start_all_to_all_rows(receive, receive_rows, send, send_rows)};
  exchange_rows(receive, receive_rows, send, send_rows);
  return {};
}

/// One message for every pair of ranks that have rows for each other. MPI_Alltoallv may visit all ranks, and of
/// thousands of them most exchanges concern a few.
void Communicator::exchange_rows(const Tensor& receive, std::span<const RowRange> receive_rows, const Tensor& send,
                                 std::span<const RowRange> send_rows) const {
  constexpr int kTag = 1;
  const RowRange &kept = send_rows[std::size_t(rank_)], &own = receive_rows[std::size_t(rank_)];
  FLANMOE_EXPECT(kept.count == own.count, "{} rows to itself and {} from itself", kept.count, own.count);
  MPI_Datatype made = MPI_DATATYPE_NULL;
  check(MPI_Type_contiguous(int(send.cols), mpi_type(send.dtype), &made), "MPI_Type_contiguous");
  const Datatype row(made);
  const auto at = [](const Tensor& t, const RowRange& rows) { return t.offset_by(rows.first * t.cols).data; };
  requests_.clear();
  requests_.reserve(2 * std::size_t(size_));
  const auto request = [&]() { return &requests_.emplace_back(MPI_REQUEST_NULL); };
  for (int i = 1; i < size_; ++i) {
    const int from = (rank_ + size_ - i) % size_;
    const RowRange& rows = receive_rows[std::size_t(from)];
    if (rows.count == 0) continue;
    check(MPI_Irecv(at(receive, rows), int(rows.count), row.get(), from, kTag, comm_, request()), "MPI_Irecv");
  }
  for (int i = 1; i < size_; ++i) {
    const int to = (rank_ + i) % size_;
    const RowRange& rows = send_rows[std::size_t(to)];
    if (rows.count == 0) continue;
    check(MPI_Isend(at(send, rows), int(rows.count), row.get(), to, kTag, comm_, request()), "MPI_Isend");
  }
  if (kept.count > 0) {
    std::memcpy(at(receive, own), at(send, kept), std::size_t(kept.count * send.cols) * size_of(send.dtype));
  }
  check(MPI_Waitall(int(requests_.size()), requests_.data(), MPI_STATUSES_IGNORE), "MPI_Waitall");
}

namespace {

/// Ranks that are given segments, and how many elements in all; see halving.hpp.
std::pair<std::uint64_t, std::int64_t> given(std::span<const std::int64_t> sizes, int rank, DType dtype) {
  const auto ranks = int(sizes.size());
  const std::int64_t elements = sum_of(sizes) - sizes[std::size_t(rank)];
  if (!ReducePlan(sizes, dtype).halves) return {receivers(sizes, rank), elements};
  std::uint64_t partners = 0;
  for (int distance = 1; distance < ranks; distance *= 2) {
    partners += detail::HalvingRound(sizes, rank, distance).give.left() > 0 ? 1 : 0;
  }
  return {partners, elements};
}

}  // namespace

std::int64_t Communicator::reduce_scatter_work(std::span<const std::int64_t> segment_sizes, DType dtype) {
  const auto ranks = std::int64_t(segment_sizes.size());
  if (ranks == 1) return 0;
  const ReducePlan plan(segment_sizes, dtype);
  return (plan.halves ? 2 : ranks) * plan.piece;
}

void Communicator::reduce_scatter_tree(const Tensor& flat, std::span<const std::int64_t> segment_sizes,
                                       const Tensor& work) const {
  start_reduce_scatter_tree(flat, segment_sizes, work).finish();
}

Pending Communicator::start_reduce_scatter_tree(const Tensor& flat, std::span<const std::int64_t> segment_sizes,
                                                const Tensor& work) const {
  const Collective scope("reduce_scatter_tree", name_);
  expect_segments(flat, segment_sizes, size_);
  if (size_ == 1) return {};
  const std::int64_t needed = reduce_scatter_work(segment_sizes, flat.dtype);
  FLANMOE_EXPECT(work.dtype == flat.dtype && work.contiguous() && work.size() >= needed,
                 "work of {} {} elements, {} {} needed", work.size(), name_of(work.dtype), needed, name_of(flat.dtype));
  const auto [partners, elements] = given(segment_sizes, rank_, flat.dtype);
  if (!counted(CollectiveKind::reduce_scatter_tree, partners, std::uint64_t(elements) * size_of(flat.dtype))) return {};
  if (transport_) return {*transport_, transport_->start_reduce_scatter_tree(flat, segment_sizes, work)};
  const ReducePlan plan(segment_sizes, flat.dtype);
  const auto reduce = [&]<class T>(T* values) {
    if constexpr (!std::is_same_v<T, bf16>) {
      if (plan.halves) {
        return detail::reduce_by_halving(comm_, values, segment_sizes, rank_, static_cast<T*>(work.data), plan.piece);
      }
    }
    return detail::reduce_in_pieces(comm_, values, segment_sizes, rank_, static_cast<T*>(work.data), plan.piece);
  };
  switch (flat.dtype) {
    case DType::f32: check(reduce(flat.as<float>()), "MPI_Sendrecv"); break;
    case DType::bf16: check(reduce(flat.as<bf16>()), "MPI_Sendrecv"); break;
    case DType::f64: check(reduce(flat.as<double>()), "MPI_Sendrecv"); break;
    case DType::i32: FLANMOE_EXPECT(false, "sums of {} are not offered", name_of(flat.dtype));
  }
  return {};
}

int detail::gather_segments(MPI_Comm comm, const Tensor& flat, std::span<const std::int64_t> sizes,
                            std::vector<int>& counts) {
  const std::size_t n = sizes.size();
  counts.resize(2 * n);
  lay_counts(counts.data(), counts.data() + n, sizes);
  return MPI_Allgatherv(MPI_IN_PLACE, 0, MPI_DATATYPE_NULL, flat.data, counts.data(), counts.data() + n,
                        mpi_type(flat.dtype), comm);
}

int detail::gather_far_segments(MPI_Comm comm, const Tensor& flat, std::span<const std::int64_t> sizes) {
  std::int64_t offset = 0;
  for (std::size_t r = 0; r < sizes.size(); ++r) {
    for (std::int64_t at = 0; at < sizes[r]; at += largest_count) {
      const int code = MPI_Bcast(flat.offset_by(offset + at).data, int(std::min(largest_count, sizes[r] - at)),
                                 mpi_type(flat.dtype), int(r), comm);
      if (code != MPI_SUCCESS) return code;
    }
    offset += sizes[r];
  }
  return MPI_SUCCESS;
}

void Communicator::all_gather_segments(const Tensor& flat, std::span<const std::int64_t> segment_sizes) const {
  const Collective scope("all_gather_segments", name_);
  expect_segments(flat, segment_sizes, size_);
  if (size_ == 1) return;
  const std::int64_t own = segment_sizes[std::size_t(rank_)];
  if (!counted(CollectiveKind::all_gather_segments, own > 0 ? others() : 0, std::uint64_t(own) * size_of(flat.dtype))) {
    return;
  }
  if (transport_) {
    Pending(*transport_, transport_->start_all_gather_segments(flat, segment_sizes)).finish();
    return;
  }
  if (flat.size() <= largest_count) {
    check(detail::gather_segments(comm_, flat, segment_sizes, counts_), "MPI_Allgatherv");
  } else {
    check(detail::gather_far_segments(comm_, flat, segment_sizes), "MPI_Bcast");
  }
}

void Communicator::sum_tree(std::span<double> values) const {
  const Collective scope("sum_tree", name_);
  if (!counted(CollectiveKind::all_reduce, others(), values.size_bytes())) return;
  const std::size_t n = values.size();
  FLANMOE_EXPECT(std::int64_t(n) <= largest_count, "a sum of {} numbers", n);
  if (!std::has_single_bit(unsigned(size_))) {
    gathered_.resize(n * std::size_t(size_));
    check(MPI_Allgather(values.data(), int(n), MPI_DOUBLE, gathered_.data(), int(n), MPI_DOUBLE, comm_),
          "MPI_Allgather");
    detail::tree_sum(values.data(), gathered_.data(), size_, std::int64_t(n), std::int64_t(n));
    return;
  }
  gathered_.resize(n);
  for (int distance = 1; distance < size_; distance *= 2) {
    const int partner = rank_ ^ distance;
    check(MPI_Sendrecv(values.data(), int(n), MPI_DOUBLE, partner, 0, gathered_.data(), int(n), MPI_DOUBLE, partner, 0,
                       comm_, MPI_STATUS_IGNORE),
          "MPI_Sendrecv");
    for (std::size_t i = 0; i < n; ++i) values[i] += gathered_[i];  // the same in either order
  }
}

}  // namespace flanmoe
