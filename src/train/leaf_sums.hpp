// The sums of one rank over the leaves of a step.
//
// Leaf i of the global batch is its i-th part of equal, consecutive rows; ranks hold consecutive leaves. Gradients and
// statistics of a leaf are computed by themselves, then neighbours are added, then pairs of neighbours:
// ((0+1)+(2+3))+((4+5)+(6+7)). A microbatch is a power of two of leaves, which the model sums while it computes them
// (moe/leaves, Product::leaves of kernels/cpu/gemm); LeafSums goes on over the microbatches of a rank, and ranks with
// the same tree (Communicator::reduce_scatter_tree, sum_tree), so that the bits do not depend on who holds how many
// leaves, nor on how many are computed together.
//
// The rows of an expert come from all ranks of its group. With one microbatch a rank these are whole parts of the tree,
// source by source, so they are summed along it as if they were of one rank. With several, the leaves of a source are
// not computed together, and its gradients are kept apart by source until all of them are summed.
//
// Two contributions to one gradient (a + b in every leaf) would have other bits than the sum over leaves of a plus that
// of b. All parameters have one contribution: biases of positions that all layers share are summed over the layers
// inside a leaf, and so is what both stacks look up in the embedding. Only the embedding that also makes the logits has
// two, one at the begin and one at the end of the backward; keeping the first by leaf would take a matrix of the
// vocabulary for each leaf. So lookups have a gradient of their own, which is summed over ranks, too, and joins
// the other behind that (ParameterStore::lookup_gradient): one more matrix of memory and of traffic.
#pragma once

#include <cstdint>
#include <optional>
#include <vector>

#include "deck/deck.hpp"
#include "kernels/kernels.hpp"
#include "model/model.hpp"
#include "parallel/process_grid.hpp"
#include "tensor/parameters.hpp"

namespace flanmoe {

/// What the store must hold for the leaves of a rank; none where the deck or the number of ranks makes no leaves.
std::optional<GradientSums> leaf_sums(const Deck& deck, const ProcessGrid& grid);

class LeafSums {
 public:
  LeafSums(KernelContext& context, const Kernels& kernels, ParameterStore& store);

  /// Between these, one forward and backward. begin_microbatch() clears the statistics.
  void begin_microbatch(StepStatistics& statistics);
  void end_microbatch(const StepStatistics& statistics);
  /// After a power of two of microbatches: gradients in level 0, source 0 of the store, and the statistics of all.
  void finish(StepStatistics& statistics);

 private:
  void add(const Tensor& to, const Tensor& from);
  void merge_levels(std::int64_t level);
  void merge_sources();

  KernelContext& context_;
  const Kernels& kernels_;
  ParameterStore& store_;
  std::int64_t microbatches_ = 0;
  std::vector<std::vector<double>> waiting_;  // statistics of the sums that wait, as gradients stand in levels
};

/// Whether a row of a matrix product has the same bits whatever the number of rows beside it, and a weight gradient of
/// a leaf whatever leaves are computed with it: sums along the tree differ between layouts where this does not hold.
bool rows_are_independent(const Kernels& kernels, DType compute);
bool leaves_are_independent(const Kernels& kernels, DType compute);

}  // namespace flanmoe
