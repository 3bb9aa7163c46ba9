// Adafactor's updates of the matrices that are cut into blocks of rows. Private to this folder.
#pragma once

#include <span>
#include <vector>

#include "kernels/kernels.hpp"
#include "optimizer/owned_unit.hpp"
#include "optimizer/piece_exchange.hpp"

namespace flanmoe {

/// Updates units of matrices that have blocks: those of a matrix with one owner one after the other, those of the
/// others bucket by bucket, because their owners exchange sums (kernels/adafactor_blocks.hpp, piece_exchange.hpp), for
/// which there is memory of one bucket. The bits are the same.
class BlockUpdates {
 public:
  BlockUpdates(const ParameterStore& store, const Communicators& communicators, const Kernels& kernels);
  /// Lays what stays from one exchange to the next.
  void lay(Arena& state);
  /// Of the updates of these units, which have blocks.
  std::size_t scratch_bytes(std::span<const OwnedUnit> units) const;
  /// Collective. `units` are those of this rank that have blocks; `step` is that of units that decay.
  void update(KernelContext& context, std::span<const OwnedUnit> units, const AdafactorStep& step) const;

 private:
  /// Sums and totals of a matrix with several owners in which this rank has a part, as home or as guest.
  struct MatrixSums {
    Tensor sums, totals;                // blocks x (cols + 2); one row
    Tensor update_sums, update_totals;  // the same of u^2
    /// Elements; and the same at the beginning of `room`.
    static std::int64_t size(std::int64_t blocks, std::int64_t cols);
    void lay(const Tensor& room, std::int64_t blocks, std::int64_t cols);
  };
  struct Side {  // of a placement and a bucket that has matrices with several owners
    const Communicator& replicas;
    Placement placement;
    std::int64_t bucket;
    PieceExchange exchange;
    MatrixSums home, guest;
  };
  const ParameterSpec& spec(const OwnedUnit& unit) const { return store_.specs()[std::size_t(unit.unit.parameter)]; }
  bool is_whole(const OwnedUnit& unit) const { return unit.unit.rows == spec(unit).rows; }
  /// Calls f(unit, where its sums are kept, its step) for the units of a side.
  template <class F>
  void for_parts(const Side& side, std::span<const OwnedUnit> units, const AdafactorStep& step, F&& f) const;
  /// Sums of all blocks to the homes, totals to the guests.
  void exchange(KernelContext& context, const Side& side, Tensor MatrixSums::*sums, Tensor MatrixSums::*totals) const;
  BlockCut cut_of(const OwnedUnit& unit) const { return {spec(unit).rows, spec(unit).block_rows}; }
  std::int64_t blocks_of(const OwnedUnit& unit) const { return cut_of(unit).blocks(unit.unit.rows); }
  Tensor gradient_of(const OwnedUnit& unit) const;
  void sum(KernelContext& context, const OwnedUnit& unit, const Tensor& sums, const AdafactorStep& step) const;
  void sum_update(KernelContext& context, const OwnedUnit& unit, const MatrixSums& part,
                  const AdafactorStep& step) const;
  void apply(KernelContext& context, const OwnedUnit& unit, const MatrixSums& part, const AdafactorStep& step) const;
  void update_whole(KernelContext& context, const OwnedUnit& unit, const AdafactorStep& step) const;
  void update_parts(KernelContext& context, const Side& side, std::span<const OwnedUnit> units,
                    const AdafactorStep& step) const;
  AdafactorStep step_of(const OwnedUnit& unit, const AdafactorStep& step) const;

  const ParameterStore& store_;
  const Kernels& kernels_;
  std::vector<Side> sides_;  // in the same order on all ranks
  mutable PieceExchange::Counts counts_;
};

}  // namespace flanmoe
