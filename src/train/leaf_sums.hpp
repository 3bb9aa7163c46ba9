// The sums of one rank over the leaves of a step, each of which is one microbatch.
//
// Leaf i of the global batch is its i-th part of equal, consecutive rows; ranks hold consecutive leaves. Gradients and
// statistics of a leaf are computed by themselves, then neighbours are added, then pairs of neighbours:
// ((0+1)+(2+3))+((4+5)+(6+7)). Ranks go on with the same tree (Communicator::reduce_scatter_tree, sum_tree), so that
// the bits do not depend on who holds how many leaves. The rows of an expert come from all ranks of its group, one leaf
// from each; its gradients are kept apart by source until the leaves of every source are summed.
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

  /// Between these, one forward and backward of one leaf. begin_leaf() clears the statistics.
  void begin_leaf(StepStatistics& statistics);
  void end_leaf(const StepStatistics& statistics);
  /// After a power of two of leaves: gradients in level 0, source 0 of the store, and the statistics of all.
  void finish(StepStatistics& statistics);

 private:
  void add(const Tensor& to, const Tensor& from);
  void merge_levels(std::int64_t level);
  void merge_sources();

  KernelContext& context_;
  const Kernels& kernels_;
  ParameterStore& store_;
  std::int64_t leaves_ = 0;
  std::vector<std::vector<double>> waiting_;  // statistics of the sums that wait, as gradients stand in levels
};

/// Whether a row of a matrix product has the same bits whatever the number of rows beside it: sums along the tree
/// differ between layouts where this does not hold.
bool rows_are_independent(const Kernels& kernels, KernelContext context, DType compute);

}  // namespace flanmoe
