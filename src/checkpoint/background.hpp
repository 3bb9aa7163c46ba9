// Checkpoints written while the training goes on.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <thread>
#include <vector>

#include "checkpoint/checkpoint.hpp"
#include "tensor/arena.hpp"

namespace flanmoe {

/// What a published checkpoint cost.
struct SaveReport {
  std::int64_t step = 0;
  std::int64_t bytes = 0;    // of tensors and checksums, of all ranks
  double seconds = 0;        // from its beginning until the last rank's part was on the disk
  double stall_seconds = 0;  // the training stood still for
  double gb_per_second() const { return seconds > 0 ? 1e-9 * double(bytes) / seconds : 0; }
};

/// Copies what this rank owns to an arena, and lets a thread write the copy to its place in the file. The thread calls
/// neither MPI nor HDF5; ranks agree, and rank 0 publishes, when the training calls poll() or finish(). One checkpoint
/// at a time. All calls but lay() are collective.
class BackgroundWriter {
 public:
  BackgroundWriter(std::string run_dir, std::int64_t keep, const ParameterStore& store, const Optimizer& optimizer,
                   const Communicator& world);
  /// What is being written is given up: nothing is published.
  ~BackgroundWriter();
  BackgroundWriter(const BackgroundWriter&) = delete;
  BackgroundWriter& operator=(const BackgroundWriter&) = delete;

  /// Lays the copies into the arena (measuring first, then committed; each time after the optimizer).
  void lay(Arena& copies);
  /// Makes the file, copies the state and starts writing. Nothing may be under way. Throws Error on all ranks.
  void begin(const CheckpointInfo& info);
  bool under_way() const { return job_ != nullptr; }
  /// Publishes when every rank has written its part; nothing happens while one is still at it. Throws Error on all
  /// ranks when one of them could not write: the older checkpoints are as they were, and nothing is under way.
  std::optional<SaveReport> poll();
  /// The same after waiting for the parts of all ranks, however long their disks take.
  std::optional<SaveReport> finish();

 private:
  struct Copy {
    int parameter = 0;
    std::int64_t expert = 0;  // global
    std::size_t kind = 0;     // in detail::state_kinds
    Tensor tensor;
    std::uint64_t first_byte = 0;  // in the values of its parameter
    bool whole = true;             // a matrix of which this rank has all rows
  };
  /// The checksum of a matrix of which this rank has the first rows.
  struct Checksum {
    int parameter = 0;
    std::int64_t expert = 0;  // global
    std::size_t kind = 0;
    std::uint32_t value = 0;
  };
  struct Job;
  void copy_state();
  std::vector<Checksum> shared_checksums() const;
  /// All parts are written, or one has failed. Collective.
  bool has_ended() const;
  SaveReport publish(std::unique_ptr<Job> job);

  std::string run_dir_;
  std::int64_t keep_;
  const ParameterStore& store_;
  const Optimizer& optimizer_;
  const Communicator& world_;
  std::vector<Copy> copies_;
  std::unique_ptr<Job> job_;
};

}  // namespace flanmoe
