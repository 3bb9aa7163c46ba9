#include "parallel/traffic.hpp"

namespace flanmoe {

const char* name_of(CollectiveKind kind) {
  switch (kind) {
    case CollectiveKind::broadcast: return "broadcast";
    case CollectiveKind::all_reduce: return "all_reduce";
    case CollectiveKind::all_gather: return "all_gather";
    case CollectiveKind::all_to_all: return "all_to_all";
    case CollectiveKind::all_to_all_rows: return "all_to_all_rows";
    case CollectiveKind::reduce_scatter_tree: return "reduce_scatter_tree";
    case CollectiveKind::all_gather_segments: return "all_gather_segments";
    case CollectiveKind::count: break;
  }
  return "?";
}

Traffic& Traffic::operator+=(const Traffic& other) {
  for (std::size_t i = 0; i < kinds.size(); ++i) {
    kinds[i].calls += other.kinds[i].calls;
    kinds[i].messages += other.kinds[i].messages;
    kinds[i].bytes += other.kinds[i].bytes;
  }
  return *this;
}

Traffic& Traffic::operator-=(const Traffic& other) {
  for (std::size_t i = 0; i < kinds.size(); ++i) {
    kinds[i].calls -= other.kinds[i].calls;
    kinds[i].messages -= other.kinds[i].messages;
    kinds[i].bytes -= other.kinds[i].bytes;
  }
  return *this;
}

CollectiveCount Traffic::total() const {
  CollectiveCount sum;
  for (const CollectiveCount& kind : kinds) {
    sum.calls += kind.calls;
    sum.messages += kind.messages;
    sum.bytes += kind.bytes;
  }
  return sum;
}

}  // namespace flanmoe
