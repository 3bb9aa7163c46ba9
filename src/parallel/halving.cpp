#include "parallel/halving.hpp"

#include <bit>
#include <cstring>
#include <numeric>

#include "parallel/mpi_type.hpp"
#include "parallel/tree.hpp"

namespace flanmoe::detail {

SegmentStream::SegmentStream(std::span<const std::int64_t> sizes, int first, int step)
    : sizes_(sizes), rank_(std::size_t(first)), step_(std::size_t(step)) {
  for (std::size_t r = 0; r < rank_; ++r) offset_ += sizes_[r];
  for (std::size_t r = rank_; r < sizes_.size(); r += step_) left_ += sizes_[r];
}

void SegmentStream::next_segment() {
  for (std::size_t i = 0; i < step_; ++i) offset_ += sizes_[rank_++];
  within_ = 0;
}

ReducePlan::ReducePlan(std::span<const std::int64_t> sizes, DType dtype)
    : halves(std::has_single_bit(sizes.size()) && dtype != DType::bf16) {
  // Large enough for full speed, small enough for a cache.
  constexpr std::int64_t most = std::int64_t{1} << 18, least = 4096;
  if (halves) {
    piece = std::min(most, std::accumulate(sizes.begin(), sizes.end(), std::int64_t{0}));
  } else {
    piece = std::min(std::max(most / std::int64_t(sizes.size()), least), *std::max_element(sizes.begin(), sizes.end()));
  }
}

namespace {

/// The next `count` elements of a stream in one place: where they lie, or copied to `packed`.
template <class T>
const T* contiguous(SegmentStream& stream, const T* flat, std::int64_t count, T* packed) {
  const T* place = packed;
  std::int64_t at = 0;
  stream.take(count, [&](std::int64_t first, std::int64_t n) {
    if (n == count) {
      place = flat + first;
      return;
    }
    std::memcpy(packed + at, flat + first, std::size_t(n) * sizeof(T));
    at += n;
  });
  return place;
}

template <class T>
void add(T* to, const T* from, std::int64_t count) {
#pragma omp parallel for simd schedule(static) if (count > 16384)
  for (std::int64_t i = 0; i < count; ++i) to[i] += from[i];
}

}  // namespace

template <class T>
int reduce_by_halving(MPI_Comm comm, T* flat, std::span<const std::int64_t> sizes, int rank, T* work,
                      std::int64_t piece) {
  for (int distance = 1; distance < int(sizes.size()); distance *= 2) {
    HalvingRound round(sizes, rank, distance);
    while (round.give.left() > 0 || round.keep.left() > 0) {
      const std::int64_t out = std::min(piece, round.give.left()), in = std::min(piece, round.keep.left());
      const T* const given = contiguous(round.give, flat, out, work + piece);
      const int code = MPI_Sendrecv(given, int(out), mpi_type<T>(), round.partner, 0, work, int(in), mpi_type<T>(),
                                    round.partner, 0, comm, MPI_STATUS_IGNORE);
      if (code != MPI_SUCCESS) return code;
      // A sum of two is the same in either order: the partner's ranks may be those before or those after.
      const T* from = work;
      round.keep.take(in, [&](std::int64_t first, std::int64_t n) {
        add(flat + first, from, n);
        from += n;
      });
    }
  }
  return MPI_SUCCESS;
}

template int reduce_by_halving(MPI_Comm, float*, std::span<const std::int64_t>, int, float*, std::int64_t);
template int reduce_by_halving(MPI_Comm, double*, std::span<const std::int64_t>, int, double*, std::int64_t);

template <class T>
int reduce_in_pieces(MPI_Comm comm, T* flat, std::span<const std::int64_t> sizes, int rank, T* work,
                     std::int64_t piece) {
  const auto ranks = int(sizes.size());
  const std::int64_t longest = *std::max_element(sizes.begin(), sizes.end());
  const auto count_of = [&](int r, std::int64_t at) {
    return std::clamp(sizes[std::size_t(r)] - at, std::int64_t{0}, piece);
  };
  T* const own = flat + std::accumulate(sizes.begin(), sizes.begin() + rank, std::int64_t{0});
  for (std::int64_t at = 0; at < longest; at += piece) {
    const std::int64_t in = count_of(rank, at);
    if (in > 0) std::memcpy(work + rank * in, own + at, std::size_t(in) * sizeof(T));
    const T* segment = own;
    for (int apart = 1; apart < ranks; ++apart) {
      const int to = (rank + apart) % ranks, from = (rank + ranks - apart) % ranks;
      segment = to == 0 ? flat : segment + sizes[std::size_t(to - 1)];
      const int code = MPI_Sendrecv(segment + at, int(count_of(to, at)), mpi_type<T>(), to, 0, work + from * in,
                                    int(in), mpi_type<T>(), from, 0, comm, MPI_STATUS_IGNORE);
      if (code != MPI_SUCCESS) return code;
    }
    if (in > 0) tree_sum(own + at, static_cast<const T*>(work), ranks, in, in);
  }
  return MPI_SUCCESS;
}

template int reduce_in_pieces(MPI_Comm, bf16*, std::span<const std::int64_t>, int, bf16*, std::int64_t);
template int reduce_in_pieces(MPI_Comm, float*, std::span<const std::int64_t>, int, float*, std::int64_t);
template int reduce_in_pieces(MPI_Comm, double*, std::span<const std::int64_t>, int, double*, std::int64_t);

}  // namespace flanmoe::detail
