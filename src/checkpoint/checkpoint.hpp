// Checkpoints: HDF5 files with global tensors by name, that any layout reads (format version 1).
#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "optimizer/optimizer.hpp"

namespace flanmoe {

struct CheckpointInfo {
  std::int64_t step = 0;  // completed optimizer steps
  std::int64_t tokens_seen = 0;
  std::string deck;  // print_deck of the run
  std::string tokenizer_fingerprint;
};

/// Writes RUN/checkpoints/step-<8 digits>/checkpoint.h5 (datasets weights/<name>, optimizer/<name>/<kind>, fp32, global
/// shapes, a CRC-32 per matrix) into a folder aside, flushes it to disk, and publishes it by one atomic rename; then
/// removes all but the newest `keep` published ones and leftovers of killed runs. Collective; every rank writes the
/// units it owns. Throws Error on any rank when the disk is full or the folder cannot be written: the older
/// checkpoints stay as they are.
std::string write_checkpoint(const std::string& run_dir, const CheckpointInfo& info, const ParameterStore& store,
                             const Optimizer& optimizer, const Communicator& world, std::int64_t keep);

struct PublishedCheckpoint {
  std::int64_t step = 0;
  std::string folder;
};
/// All published checkpoint folders of a run folder, newest first; also one in which the file is missing. Not
/// collective.
std::vector<PublishedCheckpoint> checkpoints_of(const std::string& run_dir);

/// Renames a checkpoint that cannot be read to damaged-step-<8 digits> beside it (-2, -3, ... behind that where there
/// is one already): nothing reads, counts or removes it there. Returns the new folder. Not collective.
std::string move_damaged_checkpoint(const PublishedCheckpoint& checkpoint);

/// Newest published checkpoint folder of a run folder, if any. Not collective; call on rank 0 and broadcast.
std::optional<std::string> newest_checkpoint(const std::string& run_dir);

/// Reads masters (and, unless weights_only, optimizer state) of the owned units from a checkpoint folder written by any
/// layout, verifying checksums. Throws Error naming file and tensor when one is missing, mis-shaped or damaged. The
/// caller publishes the weights afterwards. Collective.
CheckpointInfo read_checkpoint(const std::string& checkpoint_dir, const ParameterStore& store, Optimizer& optimizer,
                               const Communicator& world, bool weights_only);

/// Throws UsageError listing every tensor in which the weights of a checkpoint differ from what the model needs:
/// missing, of another shape, or more than it has. `upcycle`: the checkpoint is to be of the dense model that this one
/// is grown from. Reads no tensor; not collective.
void check_initial_weights(const std::string& checkpoint_dir, const std::vector<ParameterSpec>& specs, bool upcycle);

/// Fills the masters of the owned units from the checkpoint of a dense model: every expert is a copy of the
/// feed-forward in its place, routers get their initial values from the seed, everything else is as it was
/// (model/upcycle.hpp). The caller publishes the weights afterwards. Collective.
CheckpointInfo upcycle_checkpoint(const std::string& checkpoint_dir, const ParameterStore& store, Optimizer& optimizer,
                                  const Communicator& world, std::uint64_t seed);

/// Reads weights straight into the working copies (evaluation: no optimizer). Collective.
CheckpointInfo read_weights(const std::string& checkpoint_dir, ParameterStore& store, KernelContext&, const Kernels&,
                            const Communicator& world);

/// The header of a checkpoint without its tensors.
CheckpointInfo read_checkpoint_info(const std::string& checkpoint_dir);

/// Called with every matrix of a model (fp32, contiguous; one in memory at a time): index in specs, expert, values.
using MatrixVisitor = std::function<void(int parameter, std::int64_t expert, const Tensor& matrix)>;

/// Writes a checkpoint that holds weights alone, for a run folder that has none yet; `fill` gives the values. Published
/// by one rename. One process, no MPI.
std::string write_weights(const std::string& run_dir, const CheckpointInfo& info,
                          const std::vector<ParameterSpec>& specs, const MatrixVisitor& fill);
/// Reads all weights, verifying checksums, in the order of specs and of experts. One process, no MPI.
void visit_weights(const std::string& checkpoint_dir, const std::vector<ParameterSpec>& specs, const MatrixVisitor& f);

}  // namespace flanmoe
