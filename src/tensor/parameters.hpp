// What a model's parameters are, where they live, and who owns their optimizer state.
#pragma once

#include <algorithm>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "tensor/arena.hpp"
#include "tensor/tensor.hpp"

namespace flanmoe {

enum class Placement : std::uint8_t { dense, expert };
enum class InitKind : std::uint8_t { zeros, ones, normal, truncated_normal, uniform };

/// One named parameter tensor with its global (unsharded) shape.
struct ParameterSpec {
  std::string name;          // "encoder/layer_03/attention/query"; the name in checkpoints
  std::int64_t experts = 1;  // global number of matrices: E for Placement::expert, else 1
  std::int64_t rows = 0;     // 1 for vectors
  std::int64_t cols = 0;
  Placement placement = Placement::dense;
  InitKind init = InitKind::zeros;
  double init_scale = 0.0;      // standard deviation (normal, truncated_normal) or half-width (uniform)
  bool full_precision = false;  // the working copy stays fp32 in bf16 runs: norms, router, relative bias
  /// Above 0: not learnt from the loss. The parameter moves by this much a step towards even counts, which stand in its
  /// gradient; it has no moments and no part in the gradient norm.
  double balance_rate = 0.0;
  bool trained = true;  // false: frozen, without gradient and without optimizer state
  /// Above 0: matrices may be shared out among owners in blocks of this many rows, the last one with fewer. What a
  /// block is follows from the deck alone, so that sums over blocks have the same bits whoever owns them.
  std::int64_t block_rows = 0;
  /// Gradients are summed over ranks bucket after bucket, from 0 on: a backward pass completes the gradients of a
  /// bucket before those of the next one.
  std::int64_t bucket = 0;

  std::int64_t matrix_size() const { return rows * cols; }
  std::int64_t global_size() const { return experts * rows * cols; }
  bool is_matrix() const { return rows > 1 && cols > 1; }
  /// Whether Adafactor keeps factors of its second moment: of experts always, of other matrices by the size of the
  /// smaller side (paper facts 4.8).
  bool factored(std::int64_t threshold) const {
    return is_matrix() && (placement == Placement::expert || std::min(rows, cols) >= threshold);
  }
  /// Blocks of one matrix.
  std::int64_t blocks() const { return block_rows > 0 ? (rows + block_rows - 1) / block_rows : 1; }
};

/// The rows of a block of a matrix with more than `split_above` elements: at most 64 blocks, each with 16 rows or more.
/// 0 for matrices that stay whole.
std::int64_t block_rows_of(std::int64_t rows, std::int64_t cols, std::int64_t split_above);

/// The part of the process grid that placement depends on; see parallel/process_grid.hpp.
struct ShardCoordinates {
  int world_size = 1, world_rank = 0;    // replica group of dense parameters
  int data_size = 1, data_rank = 0;      // replica group of expert parameters
  int expert_size = 1, expert_rank = 0;  // expert group: experts are split over it
};

/// The unit of ownership: one matrix, or some blocks of its rows. A dense parameter has one matrix, an expert parameter
/// one for every local expert. Every unit has one owner in its replica group, which keeps its fp32 master and its
/// optimizer state; of a frozen unit the owner is the one that reads and writes it.
struct ParameterUnit {
  int parameter = 0;        // index into specs
  std::int64_t expert = 0;  // local expert index (0 for dense)
  std::int64_t first_row = 0, rows = 0;
  int owner = 0;            // rank in the replica group (world for dense, data axis for expert)
  std::int64_t offset = 0;  // first element in the flat gradient buffer of its placement; unused when frozen
};

/// Elements of the packed copies (PackedKernels) of one matrix of a parameter: of itself and of its transpose; 0 for
/// none.
struct PackedSizes {
  std::int64_t straight = 0, transposed = 0;
};

/// Buffers of gradients besides those that the optimizer reads. `levels`: sums of leaves that wait for their neighbours
/// in the tree of a rank, 1 where microbatches are simply added up. `sources`: ranks of an expert group whose rows make
/// sums of their own in the gradients of experts.
/// `leaves`: gradients are sums over leaves, so each parameter gets one contribution from a microbatch, because a sum
/// over leaves of two contributions has other bits than their two sums. `table`: the parameter (-1: none) whose rows
/// are looked up and that is multiplied with, too: lookups have a gradient of their own, which its owner adds after all
/// sums.
struct GradientSums {
  std::int64_t levels = 1, sources = 1;
  bool leaves = false;
  int table = -1;
};

/// Working weights in the compute type and fp32 (fp64 in a double run) gradients of one rank, with the ownership plan.
///
/// Gradients of one placement form one flat buffer: bucket after bucket, and in a bucket matrix after matrix in the
/// order of the model. A bucket is cut into one segment for every rank of the replica group, in their order, such that
/// nobody owns more than an equal share of all buckets and a block (a matrix without blocks is one); see ownership.hpp.
/// So the owners of a matrix are consecutive owners of its bucket. A variable-count reduce-scatter of a bucket leaves
/// every owner with its segment, and an all-gather returns it. Frozen matrices are shared out in the same way, as one
/// bucket. The assignment is a function of specs and coordinates only, so it is the same on every rank.
class ParameterStore {
 public:
  ParameterStore(std::vector<ParameterSpec> specs, ShardCoordinates coordinates, DType compute);

  /// Lays weights and gradients into the arenas (call on measuring arenas first, then on committed ones).
  /// With `gradients` null only weights are laid (evaluation).
  /// `packed`: [parameter], what copies it has; empty: none has any.
  void lay(Arena& weights, Arena* gradients, GradientSums sums = {}, std::span<const PackedSizes> packed = {});

  const std::vector<ParameterSpec>& specs() const { return specs_; }
  const ShardCoordinates& coordinates() const { return coordinates_; }
  DType compute() const { return compute_; }
  std::int64_t local_experts(int parameter) const;  // e, or 1
  std::int64_t first_expert(int parameter) const;   // global index of local expert 0
  /// Working weight, batch = local experts. dtype: compute type, or its accumulate type when full_precision.
  const Tensor& weight(int parameter) const { return weights_[std::size_t(parameter)]; }
  /// A copy of the working weight, or of its transpose, in the order of a device's own (PackedKernels), batch = local
  /// experts, rows of one packed matrix each; absent where none is kept.
  const Tensor& packed(int parameter, bool transposed) const {
    return packed_[std::size_t(transposed)][std::size_t(parameter)];
  }
  /// Whether a packed copy is older than the weight: whoever asks brings it up to date.
  bool packing_due(int parameter, bool transposed);
  /// The same for those who only look.
  bool packing_done(int parameter, bool transposed) const {
    return !packed_due_[std::size_t(transposed)][std::size_t(parameter)];
  }
  /// Whoever has written working weights says so: of the parameters that are trained, or of the frozen ones.
  void weights_changed(bool trained);
  bool trained(int parameter) const { return specs_[std::size_t(parameter)].trained; }
  /// One gradient matrix (batch 1), accumulate type, at the level that was begun last; absent when the parameter is
  /// frozen. `source` below sources(parameter).
  Tensor gradient(int parameter, std::int64_t expert, std::int64_t source = 0) const;
  std::int64_t sources(int parameter) const {
    return specs_[std::size_t(parameter)].placement == Placement::expert ? sums_.sources : 1;
  }
  /// The gradient of the table by lookups, at the same level; absent where they are not kept apart.
  Tensor lookup_gradient(int parameter) const;
  /// The whole of it (1 x n) and, like segment_sizes(), what each owner of the table owns of it; absent and empty where
  /// lookups are not kept apart.
  Tensor lookup_flat(std::int64_t level = 0) const {
    return lookups_.empty() ? Tensor{} : lookups_[std::size_t(level)];
  }
  const std::vector<std::int64_t>& lookup_segments() const { return lookup_segments_; }
  bool has_gradients() const { return has_gradients_; }
  /// Whether nothing was contributed to the gradient of a parameter since forget_gradients(): whoever asks contributes
  /// now, and must write what later ones add to. So gradients need not be zeroed before a step.
  bool first_contribution(int parameter);
  bool contributed(int parameter) const { return contributed_[std::size_t(parameter)]; }
  void forget_gradients() { begin_level(0); }
  /// From now on gradients are those of this level, to which nothing was contributed.
  void begin_level(std::int64_t level);
  const GradientSums& sums() const { return sums_; }

  /// The units that are trained, of all buckets or of one, in the order of the flat gradient buffer.
  const std::vector<ParameterUnit>& units(Placement placement) const { return side(placement).units; }
  std::span<const ParameterUnit> units(Placement placement, std::int64_t bucket) const;
  /// The frozen units, by owner.
  const std::vector<ParameterUnit>& frozen_units(Placement placement) const { return side(placement).frozen; }
  /// Buckets of the model; a placement has nothing in some of them.
  std::int64_t buckets() const { return buckets_; }
  /// Elements of each owner's segment of a bucket, in rank order of the replica group; sums to bucket_size().
  const std::vector<std::int64_t>& segment_sizes(Placement placement, std::int64_t bucket) const {
    return side(placement).buckets[std::size_t(bucket)].segments;
  }
  std::int64_t bucket_size(Placement placement, std::int64_t bucket) const {
    return side(placement).buckets[std::size_t(bucket)].size;
  }
  /// Elements of all segments of each owner.
  const std::vector<std::int64_t>& owned_sizes(Placement placement) const { return side(placement).owned; }
  /// The whole flat gradient buffer (1 x n) of a level and source.
  Tensor gradient_flat(Placement placement, std::int64_t level = 0, std::int64_t source = 0) const {
    if (!has_gradients_) return {};
    const std::int64_t sources = placement == Placement::expert ? sums_.sources : 1;
    return side(placement).flat[std::size_t(level * sources + source)];
  }
  /// The part of a bucket (1 x n) in level 0, source 0.
  Tensor gradient_bucket(Placement placement, std::int64_t bucket) const;
  int replica_rank(Placement placement) const;
  int replica_size(Placement placement) const;
  int find(const std::string& name) const;  // index, or throws LogicError

 private:
  struct Bucket {
    std::int64_t first = 0, size = 0;       // elements of the flat gradient buffer
    std::size_t first_unit = 0, units = 0;  // among those that are trained
    std::vector<std::int64_t> segments;     // elements of each owner
  };
  struct Side {  // of a placement
    std::vector<ParameterUnit> units, frozen;
    std::vector<Bucket> buckets;
    std::vector<std::int64_t> owned;  // elements of each owner, of what is trained
    std::vector<Tensor> flat;         // [level * sources + source]
  };
  const Side& side(Placement placement) const { return sides_[int(placement)]; }
  void plan(Placement placement);
  void lay_lookups(Arena& gradients);

  std::vector<ParameterSpec> specs_;
  ShardCoordinates coordinates_;
  DType compute_;
  std::int64_t buckets_ = 1;
  std::vector<Tensor> weights_;
  std::vector<Tensor> packed_[2];    // [transposed][parameter]
  std::vector<bool> packed_due_[2];  // the same
  Side sides_[2];
  std::vector<std::vector<std::int64_t>> matrix_offset_;  // [parameter][local expert]
  GradientSums sums_;
  std::int64_t level_ = 0;
  std::vector<Tensor> lookups_;  // [level]
  std::vector<std::int64_t> lookup_segments_;
  bool has_gradients_ = false;
  std::vector<bool> contributed_;  // [parameter]
};

/// Fills rows of one matrix, from `first_row` on, with initial values: a function of (seed, name, global expert,
/// element) only. `out` is fp32 or fp64, some rows x cols. truncated_normal is cut at two sigma and rescaled so that
/// its standard deviation is init_scale (flax; paper facts 4.1).
void initialize_matrix(const Tensor& out, const ParameterSpec& spec, std::int64_t global_expert, std::uint64_t seed,
                       std::int64_t first_row = 0);

}  // namespace flanmoe
