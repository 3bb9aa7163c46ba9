#include "checkpoint/shared_checksums.hpp"

#include <zlib.h>

#include <algorithm>
#include <string>

namespace flanmoe::detail {

SharedChecksums::SharedChecksums(const ParameterStore& store) : store_(store) {
  std::size_t slots = 0;
  for (const Placement placement : {Placement::dense, Placement::expert}) {
    // Expert groups have units of the same shapes and other experts.
    const auto groups = std::size_t(placement == Placement::expert ? store.coordinates().expert_size : 1);
    const auto group = std::size_t(placement == Placement::expert ? store.coordinates().expert_rank : 0);
    const std::size_t first = parts_.size();
    for (const auto* units : {&store.units(placement), &store.frozen_units(placement)}) {
      for (const ParameterUnit& unit : *units) {
        if (unit.rows == store.specs()[std::size_t(unit.parameter)].rows) continue;
        parts_.push_back({unit, 0, unit.owner == store.replica_rank(placement)});
      }
    }
    const std::size_t count = parts_.size() - first;
    for (std::size_t i = 0; i < count; ++i) parts_[first + i].slot = slots + (group * count + i) * kinds_;
    slots += groups * count * kinds_;
  }
  added_.resize(slots);
}

bool SharedChecksums::shares(const StateTensor& state) const {
  return std::string(state.kind) != "col" && state.tensor.rows < store_.specs()[std::size_t(state.parameter)].rows;
}

void SharedChecksums::add(const StateTensor& state, std::uint32_t checksum_of_rows) {
  const auto part = std::find_if(parts_.begin(), parts_.end(), [&](const Part& p) {
    return p.own && p.unit.parameter == state.parameter && p.unit.expert == state.expert &&
           p.unit.first_row == state.first_row;
  });
  const auto kind = std::find(state_kinds.begin(), state_kinds.begin() + kinds_, std::string(state.kind));
  FLANMOE_EXPECT(part != parts_.end() && kind != state_kinds.begin() + kinds_, "{} of rows from {} of parameter {}",
                 state.kind, state.first_row, state.parameter);
  added_[part->slot + std::size_t(kind - state_kinds.begin())] = checksum_of_rows;
}

std::vector<SharedChecksums::Whole> SharedChecksums::combine(const Communicator& world) {
  std::vector<Whole> wholes;
  if (added_.empty()) return wholes;
  crcs_ = added_;
  world.all_reduce(std::span<std::uint64_t>(crcs_), ReduceOp::sum);  // one rank each: the others have zeros
  for (std::size_t i = 0; i < parts_.size(); ++i) {
    if (!parts_[i].own || parts_[i].unit.first_row > 0) continue;
    for (std::size_t kind = 0; kind < kinds_; ++kind) wholes.push_back(whole_of(i, kind));
  }
  return wholes;
}

SharedChecksums::Whole SharedChecksums::whole_of(std::size_t part, std::size_t kind) const {
  const ParameterUnit& first = parts_[part].unit;
  const bool by_row = std::string(state_kinds[kind]) == "row";
  const std::int64_t width = by_row ? 1 : store_.specs()[std::size_t(first.parameter)].cols;
  const auto element = std::int64_t(size_of(accumulate_dtype(store_.compute())));
  uLong crc = crc32_z(0, nullptr, 0);
  for (std::size_t i = part; i < parts_.size() && (i == part || parts_[i].unit.first_row > 0); ++i) {
    crc = crc32_combine(crc, uLong(crcs_[parts_[i].slot + kind]), z_off_t(parts_[i].unit.rows * width * element));
  }
  return {first.parameter, first.expert, kind, std::uint32_t(crc)};
}

}  // namespace flanmoe::detail
