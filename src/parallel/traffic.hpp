// What one rank hands to others through collectives.
#pragma once

#include <array>
#include <cstdint>

namespace flanmoe {

enum class CollectiveKind : std::uint8_t {
  broadcast,
  all_reduce,
  all_gather,
  all_to_all,
  all_to_all_rows,
  reduce_scatter_tree,
  all_gather_segments,
  count
};
const char* name_of(CollectiveKind kind);

/// A message is a pair (call, other rank) in which that rank is given data of this one; bytes are this rank's payload
/// that others are given, once however many get the same. Both are what the operation asks for: how MPI cuts, forwards
/// or packs it on the wire is MPI's own. A communicator of one rank counts nothing.
struct CollectiveCount {
  std::uint64_t calls = 0, messages = 0, bytes = 0;
  bool operator==(const CollectiveCount&) const = default;
};

struct Traffic {
  std::array<CollectiveCount, std::size_t(CollectiveKind::count)> kinds{};

  CollectiveCount& operator[](CollectiveKind kind) { return kinds[std::size_t(kind)]; }
  const CollectiveCount& operator[](CollectiveKind kind) const { return kinds[std::size_t(kind)]; }
  Traffic& operator+=(const Traffic& other);
  Traffic& operator-=(const Traffic& other);
  bool operator==(const Traffic&) const = default;
  CollectiveCount total() const;
};

}  // namespace flanmoe
