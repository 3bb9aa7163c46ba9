// MPI with owners, types and names. Library code never names MPI_COMM_WORLD.
#pragma once

#include <mpi.h>

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "parallel/pending.hpp"
#include "parallel/process_grid.hpp"
#include "parallel/tensor_transport.hpp"
#include "parallel/traffic.hpp"
#include "tensor/tensor.hpp"

namespace flanmoe {

/// Starts MPI (thread level serialized: one thread at a time calls it) and ends it. One per process. Left by an
/// exception it ends every rank instead of waiting for them: the others may be inside a collective that this rank never
/// reaches.
class MpiEnvironment {
 public:
  MpiEnvironment(int* argc, char*** argv);
  ~MpiEnvironment();
  MpiEnvironment(const MpiEnvironment&) = delete;
  MpiEnvironment& operator=(const MpiEnvironment&) = delete;
  /// Rank in the world, for messages; 0 before MPI is started.
  static int world_rank();
  /// Ends every rank at once with this exit code. Used by main() only.
  [[noreturn]] static void abort(int exit_code);
};

enum class ReduceOp : std::uint8_t { sum, min, max };

/// Owns a duplicated communicator. Moved-from objects are empty; destroying an empty one is fine.
/// Every collective is recorded for the watchdog and checked; a failure throws Error with operation and MPI's message.
/// Counts are elements, never bytes. All ranks of the communicator call every collective, with or without data.
/// Element types: int32, int64, uint64, float and double everywhere; char, uint8 and bf16 where nothing is added up.
class Communicator {
 public:
  static Communicator world();
  /// Duplicate of a communicator somebody else keeps.
  static Communicator duplicate(MPI_Comm comm);
  /// A rank of a communicator that does not exist: needs no MPI. Its collectives check, count and move nothing; what
  /// they would have written stays as it was. For planning.
  static Communicator imagined(int rank, int size, const std::string& name);
  Communicator(Communicator&& other) noexcept;
  Communicator& operator=(Communicator&& other) noexcept;
  Communicator(const Communicator&) = delete;
  Communicator& operator=(const Communicator&) = delete;
  ~Communicator();

  int rank() const { return rank_; }
  int size() const { return size_; }
  MPI_Comm raw() const { return comm_; }
  Communicator split(int color, int key, const std::string& name) const;
  const std::string& name() const { return name_; }

  void barrier() const;
  template <class T>
  void broadcast(std::span<T> data, int root) const;
  std::string broadcast(std::string text, int root) const;
  /// In place; T in {int32, int64, uint64, float, double}. Order of sums is MPI's: use for counts, minima, maxima.
  template <class T>
  void all_reduce(std::span<T> data, ReduceOp op) const;
  template <class T>
  T all_reduce(T value, ReduceOp op) const;
  template <class T>
  std::vector<T> all_gather(T value) const;
  /// out.size() == in.size() * size().
  template <class T>
  void all_gather(std::span<T> out, std::span<const T> in) const;
  /// Fixed number of elements to and from every rank.
  template <class T>
  void all_to_all(std::span<T> out, std::span<const T> in) const;

  /// Rows of `send` (ordered by destination; send_rows[r] to rank r) to `receive` (ordered by source; receive_rows[r]
  /// from rank r). Any dtype; whole contiguous rows.
  void all_to_all_rows(const Tensor& receive, std::span<const std::int64_t> receive_rows, const Tensor& send,
                       std::span<const std::int64_t> send_rows) const;
  /// Sums `flat` (contiguous f32, bf16 or f64) over ranks; rank r gets elements of segment r (sizes sum to flat.size())
  /// in place in its own segment; other segments are left undefined. The sum is a binary tree over ranks of fixed
  /// shape (neighbours first: ((0+1)+(2+3))+..., an odd one out moves up), bf16 in fp32: the same bits every time.
  /// A power of two of ranks halves what is left among ever more distant partners; other numbers send every segment to
  /// its owner. `work` holds reduce_scatter_work(segment_sizes, dtype) elements of the same type.
  void reduce_scatter_tree(const Tensor& flat, std::span<const std::int64_t> segment_sizes, const Tensor& work) const;
  /// Elements: two messages, 2 MiB in fp32; with other numbers of ranks than powers of two, one for every rank.
  static std::int64_t reduce_scatter_work(std::span<const std::int64_t> segment_sizes, DType dtype);
  /// The same two, begun: they run beside what is computed until Pending::finish(), where overlaps() says so. Rows to
  /// and from a rank stand anywhere in their tensors.
  Pending start_all_to_all_rows(const Tensor& receive, std::span<const RowRange> receive_rows, const Tensor& send,
                                std::span<const RowRange> send_rows) const;
  Pending start_reduce_scatter_tree(const Tensor& flat, std::span<const std::int64_t> segment_sizes,
                                    const Tensor& work) const;
  /// The inverse move of reduce_scatter_tree: every rank's segment to all ranks, in place.
  void all_gather_segments(const Tensor& flat, std::span<const std::int64_t> segment_sizes) const;
  /// Sum over ranks by the same fixed tree, on every rank; for losses and counts.
  void sum_tree(std::span<double> values) const;

  /// From now on all_to_all_rows, reduce_scatter_tree and all_gather_segments hand over to this, which reaches the
  /// memory of devices; checks and counts stay here. All else is for memory of the host.
  void carry_by(std::unique_ptr<const TensorTransport> transport) { transport_ = std::move(transport); }
  /// Whether what was started runs beside what is computed: between devices. On hosts it is over at once.
  bool overlaps() const { return transport_ != nullptr; }

  /// What this rank has handed to the others so far.
  const Traffic& traffic() const { return traffic_; }

 private:
  Communicator(MPI_Comm owned, std::string name);
  void release() noexcept;
  void check(int code, const char* call) const;
  void exchange_rows(const Tensor& receive, std::span<const RowRange> receive_rows, const Tensor& send,
                     std::span<const RowRange> send_rows) const;
  /// Counts a call; false when there is nobody to move anything to.
  bool counted(CollectiveKind kind, std::uint64_t receivers, std::uint64_t bytes) const;
  std::uint64_t others() const { return std::uint64_t(size_) - 1; }
  MPI_Comm comm_ = MPI_COMM_NULL;
  int rank_ = 0, size_ = 1;
  std::string name_;
  bool imagined_ = false;
  std::unique_ptr<const TensorTransport> transport_;
  mutable Traffic traffic_;
  mutable std::vector<RowRange> ranges_;       // of all_to_all_rows, kept to spare allocations
  mutable std::vector<int> counts_;            // arguments of the calls with variable counts, kept to spare allocations
  mutable std::vector<MPI_Request> requests_;  // the same
  mutable std::vector<double> gathered_;       // what sum_tree receives
};

/// The communicators of a run.
struct Communicators {
  Communicator world;   // all ranks: replica group of dense parameters
  Communicator data;    // ranks with the same experts: replica group of expert parameters
  Communicator expert;  // ranks that share one copy of all experts
  static Communicators make(const Communicator& world, const ProcessGrid& grid);
  /// Imagined ones, for a rank of any grid.
  static Communicators imagined(const ProcessGrid& grid);
  /// What this rank has handed to others through all of them.
  Traffic traffic() const;
};

}  // namespace flanmoe
