#include "optimizer/block_updates.hpp"

#include <algorithm>
#include <utility>

#include "kernels/scratch.hpp"

namespace flanmoe {

namespace {

/// fp64 elements after which memory is as aligned as an arena's.
std::int64_t aligned(std::int64_t elements) { return (elements + 7) / 8 * 8; }

}  // namespace

BlockUpdates::BlockUpdates(const ParameterStore& store, const Communicators& communicators, const Kernels& kernels)
    : store_(store), kernels_(kernels) {
  for (std::int64_t bucket = 0; bucket < store.buckets(); ++bucket) {
    for (const Placement placement : {Placement::dense, Placement::expert}) {
      PieceExchange exchange(store, placement, bucket);
      if (!exchange.needed()) continue;
      const Communicator& replicas = placement == Placement::dense ? communicators.world : communicators.data;
      sides_.push_back({replicas, placement, bucket, std::move(exchange), {}, {}});
    }
  }
  if (!sides_.empty()) counts_.clear(communicators.world.size());
}

std::int64_t BlockUpdates::MatrixSums::size(std::int64_t blocks, std::int64_t cols) {
  return aligned(blocks * (cols + 2)) + aligned(cols + 2) + aligned(blocks) + aligned(1);
}

void BlockUpdates::MatrixSums::lay(const Tensor& room, std::int64_t blocks, std::int64_t cols) {
  std::int64_t at = 0;
  const auto take = [&](std::int64_t rows, std::int64_t width) {
    Tensor t = room.absent() ? room : room.offset_by(at);
    t.rows = rows;
    t.cols = t.stride = width;
    at += aligned(rows * width);
    return t;
  };
  sums = take(blocks, cols + 2);
  totals = take(1, cols + 2);
  update_sums = take(blocks, 1);
  update_totals = take(1, 1);
}

void BlockUpdates::lay(Arena& state) {
  const auto cols = [&](int parameter) { return store_.specs()[std::size_t(parameter)].cols; };
  std::int64_t home = 0, guest = 0;  // elements of the largest
  for (const Side& side : sides_) {
    const PieceExchange& x = side.exchange;
    if (x.own_blocks() > 0) home = std::max(home, MatrixSums::size(x.home_blocks(), cols(x.home_parameter())));
    if (x.guest_blocks() > 0) guest = std::max(guest, MatrixSums::size(x.guest_blocks(), cols(x.guest_parameter())));
  }
  const Tensor home_room = state.allocate(DType::f64, 1, home), guest_room = state.allocate(DType::f64, 1, guest);
  for (Side& side : sides_) {
    const PieceExchange& x = side.exchange;
    if (x.own_blocks() > 0) side.home.lay(home_room, x.home_blocks(), cols(x.home_parameter()));
    if (x.guest_blocks() > 0) side.guest.lay(guest_room, x.guest_blocks(), cols(x.guest_parameter()));
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
                                        gradient_of(unit), part.totals, cut_of(unit), step);
}

void BlockUpdates::apply(KernelContext& context, const OwnedUnit& unit, const MatrixSums& part,
                         const AdafactorStep& step) const {
  kernels_.adafactor_blocks.apply(context, unit.master, unit.row, unit.col, gradient_of(unit), part.totals,
                                  part.update_totals, cut_of(unit), step);
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

template <class F>
void BlockUpdates::for_parts(const Side& side, std::span<const OwnedUnit> units, const AdafactorStep& step,
                             F&& f) const {
  for (const OwnedUnit& unit : units) {
    if (is_whole(unit) || spec(unit).placement != side.placement || spec(unit).bucket != side.bucket) continue;
    f(unit, unit.unit.first_row == 0 ? side.home : side.guest, step_of(unit, step));
  }
}

void BlockUpdates::exchange(KernelContext& context, const Side& side, Tensor MatrixSums::*sums,
                            Tensor MatrixSums::*totals) const {
  side.exchange.gather(side.replicas, counts_, side.home.*sums, side.guest.*sums);
  Tensor copies;  // of the totals, a row for every guest; sums that were added have room for them
  if (side.exchange.own_blocks() > 0) {
    kernels_.adafactor_blocks.add(context, side.home.*totals, side.home.*sums);
    copies = (side.home.*sums).slice_rows(0, side.exchange.guests());
    kernels_.adafactor_blocks.add(context, copies, side.home.*totals);
  }
  side.exchange.spread(side.replicas, counts_, copies, side.guest.*totals);
}

void BlockUpdates::update_parts(KernelContext& context, const Side& side, std::span<const OwnedUnit> units,
                                const AdafactorStep& step) const {
  const auto for_units = [&](auto&& f) { for_parts(side, units, step, f); };
  for_units([&](const OwnedUnit& unit, const MatrixSums& part, const AdafactorStep& own) {
    sum(context, unit, part.sums, own);
  });
  exchange(context, side, &MatrixSums::sums, &MatrixSums::totals);
  for_units([&](const OwnedUnit& unit, const MatrixSums& part, const AdafactorStep& own) {
    sum_update(context, unit, part, own);
  });
  exchange(context, side, &MatrixSums::update_sums, &MatrixSums::update_totals);
  for_units([&](const OwnedUnit& unit, const MatrixSums& part, const AdafactorStep& own) {
    apply(context, unit, part, own);
  });
}

void BlockUpdates::update(KernelContext& context, std::span<const OwnedUnit> units, const AdafactorStep& step) const {
  for (const OwnedUnit& unit : units) {
    if (is_whole(unit)) update_whole(context, unit, step_of(unit, step));
  }
  for (const Side& side : sides_) update_parts(context, side, units, step);
}

}  // namespace flanmoe
