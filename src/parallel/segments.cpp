// The collectives with a count for every rank: rows of tokens, segments of gradients and weights.
#include "parallel/segments.hpp"

#include <algorithm>
#include <numeric>

#include "parallel/communicator.hpp"
#include "parallel/mpi_type.hpp"
#include "parallel/tree.hpp"

namespace flanmoe {

using detail::Collective;
using detail::Datatype;
using detail::largest_count;
using detail::mpi_type;

namespace {

std::int64_t sum_of(std::span<const std::int64_t> counts) {
  return std::accumulate(counts.begin(), counts.end(), std::int64_t{0});
}

/// Other ranks that get something.
std::uint64_t receivers(std::span<const std::int64_t> counts, int rank) {
  const auto some = std::uint64_t(std::count_if(counts.begin(), counts.end(), [](auto n) { return n > 0; }));
  return some - (counts[std::size_t(rank)] > 0 ? 1 : 0);
}

void expect_rows(const Tensor& tensor, std::span<const std::int64_t> rows, int size, const char* what) {
  FLANMOE_EXPECT(tensor.contiguous(), "{}: rows of {} columns with stride {}", what, tensor.cols, tensor.stride);
  FLANMOE_EXPECT(std::int64_t(rows.size()) == size, "{}: {} counts for {} ranks", what, rows.size(), size);
  const std::int64_t total = sum_of(rows);
  FLANMOE_EXPECT(total <= tensor.batch * tensor.rows && total <= largest_count, "{}: {} rows, the tensor has {}", what,
                 total, tensor.batch * tensor.rows);
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
  const Collective scope("all_to_all_rows", name_);
  expect_rows(receive, receive_rows, size_, "receive");
  expect_rows(send, send_rows, size_, "send");
  FLANMOE_EXPECT(receive.dtype == send.dtype && receive.cols == send.cols && send.cols <= largest_count,
                 "rows of {} {} sent, of {} {} received", send.cols, name_of(send.dtype), receive.cols,
                 name_of(receive.dtype));
  const std::int64_t kept = send_rows[std::size_t(rank_)];
  if (!counted(CollectiveKind::all_to_all_rows, receivers(send_rows, rank_),
               std::uint64_t((sum_of(send_rows) - kept) * send.cols) * size_of(send.dtype))) {
    return;
  }
  const auto n = std::size_t(size_);
  counts_.resize(4 * n);
  int* const c = counts_.data();
  lay_counts(c, c + n, send_rows);
  lay_counts(c + 2 * n, c + 3 * n, receive_rows);
  MPI_Datatype made = MPI_DATATYPE_NULL;
  check(MPI_Type_contiguous(int(send.cols), mpi_type(send.dtype), &made), "MPI_Type_contiguous");
  const Datatype row(made);
  check(MPI_Alltoallv(send.data, c, c + n, row.get(), receive.data, c + 2 * n, c + 3 * n, row.get(), comm_),
        "MPI_Alltoallv");
}

namespace {

/// `count` elements that begin `offset` elements after the address given to MPI, as one element of a derived type:
/// sizes and offsets beyond the range of int.
Datatype far_segment(MPI_Datatype element, std::int64_t offset, std::int64_t count) {
  int element_size = 0;
  MPI_Type_size(element, &element_size);
  std::vector<int> lengths;
  std::vector<MPI_Aint> places;
  for (std::int64_t at = 0; at < count; at += largest_count) {
    lengths.push_back(int(std::min(largest_count, count - at)));
    places.push_back(MPI_Aint((offset + at) * element_size));
  }
  MPI_Datatype made = MPI_DATATYPE_NULL;
  MPI_Type_create_hindexed(int(lengths.size()), lengths.data(), places.data(), element, &made);
  return Datatype(made);
}

}  // namespace

int detail::exchange_segments(MPI_Comm comm, const Tensor& work, const Tensor& flat,
                              std::span<const std::int64_t> sizes, int rank, std::vector<int>& counts) {
  const std::size_t n = sizes.size();
  const std::int64_t own = sizes[std::size_t(rank)];
  counts.resize(4 * n);
  int* const c = counts.data();
  lay_counts(c, c + n, sizes);
  for (std::size_t r = 0; r < n; ++r) {
    c[2 * n + r] = int(own);
    c[3 * n + r] = int(std::int64_t(r) * own);
  }
  return MPI_Alltoallv(flat.data, c, c + n, mpi_type(flat.dtype), work.data, c + 2 * n, c + 3 * n, mpi_type(flat.dtype),
                       comm);
}

int detail::exchange_far_segments(MPI_Comm comm, const Tensor& work, const Tensor& flat,
                                  std::span<const std::int64_t> sizes, int rank) {
  const std::size_t n = sizes.size();
  const std::int64_t own = sizes[std::size_t(rank)];
  const MPI_Datatype element = mpi_type(flat.dtype);
  std::vector<Datatype> owners;
  std::vector<MPI_Datatype> send_types(n, element), receive_types(n, element);
  std::vector<int> send_counts(n), receive_counts(n, own > 0 ? 1 : 0), none(n, 0);
  std::int64_t offset = 0;
  for (std::size_t r = 0; r < n; ++r) {
    if (sizes[r] > 0) {
      send_types[r] = owners.emplace_back(far_segment(element, offset, sizes[r])).get();
      send_counts[r] = 1;
    }
    if (own > 0) receive_types[r] = owners.emplace_back(far_segment(element, std::int64_t(r) * own, own)).get();
    offset += sizes[r];
  }
  return MPI_Alltoallw(flat.data, send_counts.data(), none.data(), send_types.data(), work.data, receive_counts.data(),
                       none.data(), receive_types.data(), comm);
}

void Communicator::reduce_scatter_tree(const Tensor& flat, std::span<const std::int64_t> segment_sizes,
                                       const Tensor& work) const {
  const Collective scope("reduce_scatter_tree", name_);
  expect_segments(flat, segment_sizes, size_);
  if (size_ == 1) return;
  const std::int64_t own = segment_sizes[std::size_t(rank_)];
  FLANMOE_EXPECT(work.dtype == flat.dtype && work.contiguous() && work.size() >= own * size_,
                 "work of {} {} elements, {} {} needed", work.size(), name_of(work.dtype), own * size_,
                 name_of(flat.dtype));
  if (!counted(CollectiveKind::reduce_scatter_tree, receivers(segment_sizes, rank_),
               std::uint64_t(flat.size() - own) * size_of(flat.dtype))) {
    return;
  }
  if (flat.size() <= largest_count && own * size_ <= largest_count) {
    check(detail::exchange_segments(comm_, work, flat, segment_sizes, rank_, counts_), "MPI_Alltoallv");
  } else {
    check(detail::exchange_far_segments(comm_, work, flat, segment_sizes, rank_), "MPI_Alltoallw");
  }
  const std::int64_t before = sum_of(segment_sizes.first(std::size_t(rank_)));
  const auto sum = [&]<class T>(T* base) {
    detail::tree_sum(base + before, static_cast<const T*>(work.data), size_, own, own);
  };
  switch (flat.dtype) {
    case DType::f32: sum(flat.as<float>()); break;
    case DType::bf16: sum(flat.as<bf16>()); break;
    case DType::f64: sum(flat.as<double>()); break;
    case DType::i32: FLANMOE_EXPECT(false, "sums of {} are not offered", name_of(flat.dtype));
  }
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
  if (flat.size() <= largest_count) {
    check(detail::gather_segments(comm_, flat, segment_sizes, counts_), "MPI_Allgatherv");
  } else {
    check(detail::gather_far_segments(comm_, flat, segment_sizes), "MPI_Bcast");
  }
}

void Communicator::sum_tree(std::span<double> values) const {
  if (size_ == 1) return;
  if (imagined_) {
    counted(CollectiveKind::all_gather, others(), values.size_bytes());
    return;
  }
  gathered_.resize(values.size() * std::size_t(size_));
  all_gather(std::span<double>(gathered_), std::span<const double>(values.data(), values.size()));
  const auto n = std::int64_t(values.size());
  detail::tree_sum(values.data(), gathered_.data(), size_, n, n);
}

}  // namespace flanmoe
