#include "train/replicas.hpp"

#include <map>

#include "base/error.hpp"
#include "tensor/checksum.hpp"

namespace flanmoe {
namespace {

/// Of all matrices of a parameter that this rank holds.
std::uint32_t checksum_of(const ParameterStore& store, int parameter, HostRoom& room, KernelContext& context) {
  std::uint32_t crc = 0;
  for (std::int64_t e = 0; e < store.local_experts(parameter); ++e) {
    crc = checksum(room.read(context, store.weight(parameter).matrix(e)), crc);
  }
  return crc;
}

/// "1a2b3c4d on ranks [0, 2], 5e6f7081 on ranks [1]".
std::string who_has_what(const std::vector<std::int64_t>& checksums, const std::vector<std::int32_t>& ranks) {
  std::map<std::int64_t, std::vector<std::int32_t>> by_checksum;
  for (std::size_t i = 0; i < ranks.size(); ++i) by_checksum[checksums[i]].push_back(ranks[i]);
  std::string text;
  for (auto& [checksum, holders] : by_checksum) {
    const std::size_t count = holders.size(), shown = 16;
    holders.resize(std::min(count, shown));
    text += fmt::format("{}{:08x} on ranks [{}{}]", text.empty() ? "" : ", ", checksum, fmt::join(holders, ", "),
                        count > shown ? fmt::format(" and {} more", count - shown) : "");
  }
  return text;
}

/// What is wrong with the parameters of one placement in the replica group of this rank; empty when nothing is.
std::string difference(const ParameterStore& store, Placement placement, const Communicator& replicas,
                       std::int32_t world_rank, HostRoom& room, KernelContext& context) {
  std::vector<std::int64_t> least, most;
  std::vector<int> parameters;
  for (std::size_t p = 0; p < store.specs().size(); ++p) {
    if (store.specs()[p].placement != placement) continue;
    parameters.push_back(int(p));
    least.push_back(checksum_of(store, int(p), room, context));
  }
  most = least;
  const std::vector<std::int64_t> own = least;
  replicas.all_reduce(std::span<std::int64_t>(least), ReduceOp::min);
  replicas.all_reduce(std::span<std::int64_t>(most), ReduceOp::max);
  for (std::size_t i = 0; i < own.size(); ++i) {
    if (least[i] == most[i]) continue;
    const std::string what = who_has_what(replicas.all_gather(own[i]), replicas.all_gather(world_rank));
    return fmt::format("the copies of {} differ: {}", store.specs()[std::size_t(parameters[i])].name, what);
  }
  return "";
}

}  // namespace

std::string replica_difference(const ParameterStore& store, const Communicators& communicators, const Kernels& kernels,
                               KernelContext& context) {
  const Communicator& world = communicators.world;
  HostRoom room(kernels.transfer);
  std::string found = difference(store, Placement::dense, world, world.rank(), room, context);
  const std::string experts = difference(store, Placement::expert, communicators.data, world.rank(), room, context);
  if (found.empty()) found = experts;
  // The lowest rank that knows of one tells all.
  const int who = world.all_reduce(std::int32_t(found.empty() ? world.size() : world.rank()), ReduceOp::min);
  if (who == world.size()) return "";
  return world.broadcast(found, who) +
         " (checksums of weights that must be equal; the memory or the network of a rank is at fault)";
}

}  // namespace flanmoe
