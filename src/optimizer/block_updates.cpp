#include "optimizer/block_updates.hpp"

#include <algorithm>

#include "kernels/scratch.hpp"

namespace flanmoe {

BlockUpdates::BlockUpdates(const ParameterStore& store, const Communicators& communicators, const Kernels& kernels)
    : store_(store),
      kernels_(kernels),
      sides_{{communicators.world, PieceExchange(store, Placement::dense), {}, {}},
             {communicators.data, PieceExchange(store, Placement::expert), {}, {}}} {}

void BlockUpdates::MatrixSums::lay(Arena& arena, std::int64_t blocks, std::int64_t copies, std::int64_t cols) {
  sums = arena.allocate(DType::f64, blocks, cols + 2);
  totals = arena.allocate(DType::f64, copies, cols + 2);
  update_sums = arena.allocate(DType::f64, blocks, 1);
  update_totals = arena.allocate(DType::f64, copies, 1);
}

void BlockUpdates::lay(Arena& state) {
  for (Side& side : sides_) {
    const PieceExchange& x = side.exchange;
    const auto cols = [&](int parameter) { return store_.specs()[std::size_t(parameter)].cols; };
    if (x.own_blocks() > 0) side.home.lay(state, x.home_blocks(), 1 + x.guests(), cols(x.home_parameter()));
    if (x.guest_blocks() > 0) side.guest.lay(state, x.guest_blocks(), 1, cols(x.guest_parameter()));
  }
}

std::size_t BlockUpdates::scratch_bytes(std::span<const OwnedUnit> units) const {
  std::size_t most = 0;
  for (const OwnedUnit& unit : units) {
    const std::int64_t blocks = blocks_of(unit), width = spec(unit).cols + 2;
    std::size_t bytes = kernels_.adafactor_blocks.scratch_bytes(unit.unit.rows, spec(unit).cols);
    if (is_whole(unit)) {
      bytes += scratch_size<double>(blocks * width) + scratch_size<double>(width) + scratch_size<double>(blocks) +
               scratch_size<double>(1);
    }
    most = std::max(most, bytes);
  }
  return most;
}

const BlockUpdates::MatrixSums& BlockUpdates::part_of(const OwnedUnit& unit) const {
  const Side& side = sides_[int(spec(unit).placement)];
  return unit.unit.first_row == 0 ? side.home : side.guest;
}

Tensor BlockUpdates::gradient_of(const OwnedUnit& unit) const {
  return store_.gradient(unit.unit.parameter, unit.unit.expert).slice_rows(unit.unit.first_row, unit.unit.rows);
}

void BlockUpdates::sum(KernelContext& context, const OwnedUnit& unit, const Tensor& sums,
                       const AdafactorStep& step) const {
  kernels_.adafactor_blocks.sums(context, sums.slice_rows(0, blocks_of(unit)), unit.row, unit.master, gradient_of(unit),
                                 cut_of(unit), step);
}

void BlockUpdates::sum_update(KernelContext& context, const OwnedUnit& unit, const MatrixSums& part,
                              const AdafactorStep& step) const {
  kernels_.adafactor_blocks.update_sums(context, part.update_sums.slice_rows(0, blocks_of(unit)), unit.row, unit.col,
                                        gradient_of(unit), part.totals.slice_rows(0, 1), cut_of(unit), step);
}

void BlockUpdates::apply(KernelContext& context, const OwnedUnit& unit, const MatrixSums& part,
                         const AdafactorStep& step) const {
  kernels_.adafactor_blocks.apply(context, unit.master, unit.row, unit.col, gradient_of(unit),
                                  part.totals.slice_rows(0, 1), part.update_totals.slice_rows(0, 1), cut_of(unit),
                                  step);
}

AdafactorStep BlockUpdates::step_of(const OwnedUnit& unit, const AdafactorStep& step) const {
  AdafactorStep own = step;
  if (!decays(spec(unit))) own.weight_decay = 0.0;
  return own;
}

void BlockUpdates::update_whole(KernelContext& context, const OwnedUnit& unit, const AdafactorStep& step) const {
  ScratchScope scratch(context);
  const std::int64_t blocks = blocks_of(unit), width = spec(unit).cols + 2;
  const auto take = [&](std::int64_t rows, std::int64_t cols) {
    return make_tensor(scratch.take<double>(rows * cols), rows, cols);
  };
  const MatrixSums part{take(blocks, width), take(1, width), take(blocks, 1), take(1, 1)};
  sum(context, unit, part.sums, step);
  kernels_.adafactor_blocks.add(context, part.totals, part.sums);
  sum_update(context, unit, part, step);
  kernels_.adafactor_blocks.add(context, part.update_totals, part.update_sums);
  apply(context, unit, part, step);
}

void BlockUpdates::update_parts(KernelContext& context, std::span<const OwnedUnit> units,
                                const AdafactorStep& step) const {
  const auto for_parts = [&](auto&& f) {
    for (const OwnedUnit& unit : units) {
      if (!is_whole(unit)) f(unit, part_of(unit), step_of(unit, step));
    }
  };
  // Sums of all blocks to the homes, totals to the guests; dense matrices, then experts.
  const auto exchange = [&](Tensor MatrixSums::*sums, Tensor MatrixSums::*totals) {
    for (const Side& side : sides_) {
      if (!side.exchange.needed()) continue;
      side.exchange.gather(side.replicas, side.home.*sums, side.guest.*sums);
      if (side.exchange.own_blocks() > 0) {
        kernels_.adafactor_blocks.add(context, side.home.*totals, side.home.*sums);
      }
      side.exchange.spread(side.replicas, side.home.*totals, side.guest.*totals);
    }
  };
  for_parts([&](const OwnedUnit& unit, const MatrixSums& part, const AdafactorStep& own) {
    sum(context, unit, part.sums, own);
  });
  exchange(&MatrixSums::sums, &MatrixSums::totals);
  for_parts([&](const OwnedUnit& unit, const MatrixSums& part, const AdafactorStep& own) {
    sum_update(context, unit, part, own);
  });
  exchange(&MatrixSums::update_sums, &MatrixSums::update_totals);
  for_parts([&](const OwnedUnit& unit, const MatrixSums& part, const AdafactorStep& own) {
    apply(context, unit, part, own);
  });
}

void BlockUpdates::update(KernelContext& context, std::span<const OwnedUnit> units, const AdafactorStep& step) const {
  for (const OwnedUnit& unit : units) {
    if (is_whole(unit)) update_whole(context, unit, step_of(unit, step));
  }
  update_parts(context, units, step);
}

}  // namespace flanmoe
