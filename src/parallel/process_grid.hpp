// World = data x expert. An immutable value; can be made without MPI for tests and for the plan stage.
#pragma once

#include "tensor/parameters.hpp"

namespace flanmoe {

/// rank = data_rank * expert_size + expert_rank: an expert group is a run of neighbouring ranks (one node where it
/// fits), a replica group of experts takes every expert_size-th rank.
class ProcessGrid {
 public:
  /// Throws UsageError with the arithmetic when expert_size does not divide world_size.
  ProcessGrid(int world_size, int world_rank, int expert_size);
  int world_size() const { return world_size_; }
  int world_rank() const { return world_rank_; }
  int expert_size() const { return expert_size_; }
  int expert_rank() const { return world_rank_ % expert_size_; }
  int data_size() const { return world_size_ / expert_size_; }
  int data_rank() const { return world_rank_ / expert_size_; }
  ShardCoordinates coordinates() const;

 private:
  int world_size_, world_rank_, expert_size_;
};

}  // namespace flanmoe
