#include "train/replicas.hpp"

#include <limits>
#include <map>
#include <optional>

#include "base/error.hpp"
#include "tensor/checksum.hpp"

namespace flanmoe {
namespace {

/// Something that all ranks of a replica group which hold it hold alike.
struct Replicated {
  std::string name;
  std::optional<std::uint32_t> checksum;  // none: this rank holds nothing of it
};

/// The weights of a placement: of each parameter, all matrices that this rank holds, and their packed copies.
void add_weights(std::vector<Replicated>& all, const ParameterStore& store, Placement placement, HostRoom& room,
                 KernelContext& context) {
  for (std::size_t p = 0; p < store.specs().size(); ++p) {
    if (store.specs()[p].placement != placement) continue;
    std::uint32_t crc = 0;
    for (std::int64_t e = 0; e < store.local_experts(int(p)); ++e) {
      crc = checksum(room.read(context, store.weight(int(p)).matrix(e)), crc);
    }
    all.push_back({store.specs()[p].name, crc});
    // Products read the copies, which on another processor may not be there.
    for (const bool transposed : {false, true}) {
      const Tensor& packed = store.packed(int(p), transposed);
      std::optional<std::uint32_t> of_copy;
      if (!packed.absent() && store.packing_done(int(p), transposed)) of_copy = checksum(room.read(context, packed));
      all.push_back({fmt::format("{}, packed for products{},", store.specs()[p].name, transposed ? ", transposed" : ""),
                     of_copy});
    }
  }
}

/// Adafactor's factors of columns, of matrices whose blocks may have several owners: each of them has one. Listed for
/// every such matrix on every rank, whoever owns a part of it.
void add_column_factors(std::vector<Replicated>& all, const ParameterStore& store, const Optimizer& optimizer,
                        Placement placement, HostRoom& room, KernelContext& context) {
  std::map<std::pair<int, std::int64_t>, std::size_t> place;
  for (std::size_t p = 0; p < store.specs().size(); ++p) {
    const ParameterSpec& spec = store.specs()[p];
    if (spec.placement != placement || spec.block_rows == 0) continue;
    for (std::int64_t e = 0; e < store.local_experts(int(p)); ++e) {
      place[{int(p), e}] = all.size();
      const std::string expert = spec.experts > 1 ? fmt::format(", expert {}", store.first_expert(int(p)) + e) : "";
      all.push_back({fmt::format("{}{}, factor col of Adafactor,", spec.name, expert), std::nullopt});
    }
  }
  optimizer.visit_state([&](const StateTensor& state) {
    const auto found = place.find({state.parameter, state.expert});
    if (found == place.end() || std::string(state.kind) != "col") return;
    all[found->second].checksum = checksum(room.read(context, state.tensor));
  });
}

/// "1a2b3c4d on ranks [0, 2], 5e6f7081 on ranks [1]"; ranks whose checksum is below 0 hold nothing.
std::string who_has_what(const std::vector<std::int64_t>& checksums, const std::vector<std::int32_t>& ranks) {
  std::map<std::int64_t, std::vector<std::int32_t>> by_checksum;
  for (std::size_t i = 0; i < ranks.size(); ++i) {
    if (checksums[i] >= 0) by_checksum[checksums[i]].push_back(ranks[i]);
  }
  std::string text;
  for (auto& [checksum, holders] : by_checksum) {
    const std::size_t count = holders.size(), shown = 16;
    holders.resize(std::min(count, shown));
    text += fmt::format("{}{:08x} on ranks [{}{}]", text.empty() ? "" : ", ", checksum, fmt::join(holders, ", "),
                        count > shown ? fmt::format(" and {} more", count - shown) : "");
  }
  return text;
}

/// What is wrong in the replica group of this rank; empty when nothing is. All ranks of the group list the same things
/// in the same order.
std::string difference(const std::vector<Replicated>& all, const Communicator& replicas, std::int32_t world_rank) {
  std::vector<std::int64_t> least, most;
  for (const Replicated& one : all) {
    least.push_back(one.checksum.value_or(std::numeric_limits<std::int64_t>::max()));
    most.push_back(one.checksum ? std::int64_t(*one.checksum) : -1);
  }
  replicas.all_reduce(std::span<std::int64_t>(least), ReduceOp::min);
  replicas.all_reduce(std::span<std::int64_t>(most), ReduceOp::max);
  for (std::size_t i = 0; i < all.size(); ++i) {
    if (least[i] >= most[i]) continue;  // above: nobody holds it
    const std::int64_t own = all[i].checksum ? std::int64_t(*all[i].checksum) : -1;
    const std::string what = who_has_what(replicas.all_gather(own), replicas.all_gather(world_rank));
    return fmt::format("the copies of {} differ: {}", all[i].name, what);
  }
  return "";
}

}  // namespace

std::string replica_difference(const ParameterStore& store, const Optimizer& optimizer,
                               const Communicators& communicators, const Kernels& kernels, KernelContext& context) {
  const Communicator& world = communicators.world;
  HostRoom room(kernels.transfer);
  std::string found;
  for (const Placement placement : {Placement::dense, Placement::expert}) {
    std::vector<Replicated> all;
    add_weights(all, store, placement, room, context);
    add_column_factors(all, store, optimizer, placement, room, context);
    const Communicator& replicas = placement == Placement::dense ? world : communicators.data;
    const std::string of_placement = difference(all, replicas, world.rank());
    if (found.empty()) found = of_placement;
  }
  // The lowest rank that knows of one tells all.
  const int who = world.all_reduce(std::int32_t(found.empty() ? world.size() : world.rank()), ReduceOp::min);
  if (who == world.size()) return "";
  return world.broadcast(found, who) +
         " (checksums of what must be equal; the memory or the network of a rank is at fault)";
}

}  // namespace flanmoe
