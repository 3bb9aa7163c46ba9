// Adafactor's updates of the matrices that are cut into blocks of rows. Private to this folder.
#pragma once

#include <span>

#include "kernels/kernels.hpp"
#include "optimizer/owned_unit.hpp"
#include "optimizer/piece_exchange.hpp"

namespace flanmoe {

/// Updates units of matrices that have blocks: those of a matrix with one owner one after the other, those of the
/// others together, because their owners exchange sums (kernels/adafactor_blocks.hpp, piece_exchange.hpp). The bits are
/// the same.
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
  /// Sums and totals of the matrices with several owners in which this rank has a part, one as home and one as guest.
  struct MatrixSums {
    Tensor sums, totals;                // blocks x (cols + 2); one row, at home one for every guest, too
    Tensor update_sums, update_totals;  // the same of u^2
    void lay(Arena& arena, std::int64_t blocks, std::int64_t copies, std::int64_t cols);
  };
  struct Side {  // of a placement
    const Communicator& replicas;
    PieceExchange exchange;
    MatrixSums home, guest;
  };
  const ParameterSpec& spec(const OwnedUnit& unit) const { return store_.specs()[std::size_t(unit.unit.parameter)]; }
  bool is_whole(const OwnedUnit& unit) const { return unit.unit.rows == spec(unit).rows; }
  /// Where the sums of a unit with several owners are kept.
  const MatrixSums& part_of(const OwnedUnit& unit) const;
  BlockCut cut_of(const OwnedUnit& unit) const { return {spec(unit).rows, spec(unit).block_rows}; }
  std::int64_t blocks_of(const OwnedUnit& unit) const { return cut_of(unit).blocks(unit.unit.rows); }
  Tensor gradient_of(const OwnedUnit& unit) const;
  void sum(KernelContext& context, const OwnedUnit& unit, const Tensor& sums, const AdafactorStep& step) const;
  void sum_update(KernelContext& context, const OwnedUnit& unit, const MatrixSums& part,
                  const AdafactorStep& step) const;
  void apply(KernelContext& context, const OwnedUnit& unit, const MatrixSums& part, const AdafactorStep& step) const;
  void update_whole(KernelContext& context, const OwnedUnit& unit, const AdafactorStep& step) const;
  void update_parts(KernelContext& context, std::span<const OwnedUnit> units, const AdafactorStep& step) const;
  AdafactorStep step_of(const OwnedUnit& unit, const AdafactorStep& step) const;

  const ParameterStore& store_;
  const Kernels& kernels_;
  Side sides_[2];  // [placement]
};

}  // namespace flanmoe
