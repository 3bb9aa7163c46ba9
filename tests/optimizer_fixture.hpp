// A small set of parameters with everything an optimizer needs around it, on the ranks of one communicator.
#pragma once

#include <map>
#include <string>

#include "optimizer/optimizer.hpp"

namespace flanmoe::test {

/// Every case that placement, precision, factoring and blocks distinguish, in three buckets of which one has experts.
/// 12 experts divide by 1, 2, 3 and 4; on several ranks logits and some experts have several owners.
inline std::vector<ParameterSpec> rig_parameters() {
  std::vector<ParameterSpec> specs = {
      {"embedding", 1, 30, 10, Placement::dense, InitKind::normal, 1.0, false},
      {"encoder/layer_00/norm", 1, 1, 10, Placement::dense, InitKind::ones, 0.0, true},
      {"encoder/relative_bias", 1, 4, 3, Placement::dense, InitKind::normal, 0.5, true},
      {"encoder/layer_00/query", 1, 10, 12, Placement::dense, InitKind::truncated_normal, 0.3, false},
      {"encoder/layer_00/expert_up", 12, 8, 9, Placement::expert, InitKind::normal, 0.2, false},
      {"encoder/layer_00/expert_down", 12, 9, 6, Placement::expert, InitKind::uniform, 0.2, false},
      {"logits", 1, 24, 31, Placement::dense, InitKind::normal, 0.1, false}};
  specs[4].block_rows = 3;
  specs[6].block_rows = 5;
  for (std::size_t p = 0; p + 1 < specs.size(); ++p) specs[p].bucket = p == 0 ? 2 : 1;
  return specs;
}

inline OptimizerDeck rig_deck(const std::string& name) {
  OptimizerDeck deck;
  deck.name = name;
  deck.factor_threshold = 24;  // logits (24 x 31) are factored, the embedding (30 x 10) is not
  return deck;
}

struct Rig {
  Rig(const Communicator& world, int degree, const OptimizerDeck& deck, DType compute = DType::f32,
      const std::string& device = "reference", std::vector<ParameterSpec> specs = rig_parameters(),
      std::uint64_t seed = 0)
      : kernels(kernels_for(device)),
        grid(world.size(), world.rank(), degree),
        communicators(Communicators::make(world, grid)),
        store(std::move(specs), grid.coordinates(), compute),
        optimizer(deck, store, communicators, kernels, {}, seed) {
    lay();
    for (Arena* arena : {&weights, &gradients, &state, &scratch}) arena->commit();
    lay();
  }

  void lay() {
    store.lay(weights, &gradients);
    optimizer.lay(state, scratch);
  }
  int parameters() const { return int(store.specs().size()); }
  const ParameterSpec& spec(int parameter) const { return store.specs()[std::size_t(parameter)]; }
  const Communicator& replicas(Placement placement) const {
    return placement == Placement::dense ? communicators.world : communicators.data;
  }
  /// All state tensors of this rank by "parameter/expert/kind" with the global expert index.
  std::map<std::string, Tensor> state_tensors() const {
    std::map<std::string, Tensor> all;
    optimizer.visit_state([&](const StateTensor& s) {
      const std::int64_t expert = store.first_expert(s.parameter) + s.expert;
      all[fmt::format("{}/{}/{}", spec(s.parameter).name, expert, s.kind)] = s.tensor;
    });
    return all;
  }

  const Kernels& kernels;
  ProcessGrid grid;
  Communicators communicators;
  ParameterStore store;
  Arena weights{"weights"}, gradients{"gradients"}, state{"state"}, scratch{"scratch"};
  KernelContext context{.scratch = &scratch};
  Optimizer optimizer;
};

/// The degrees of expert parallelism that divide the ranks.
inline std::vector<int> degrees_of(int ranks) {
  std::vector<int> degrees;
  for (int d = 1; d <= ranks; ++d) {
    if (ranks % d == 0) degrees.push_back(d);
  }
  return degrees;
}

}  // namespace flanmoe::test
