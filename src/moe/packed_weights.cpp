#include "moe/packed_weights.hpp"

namespace flanmoe {

std::vector<PackedSizes> packed_sizes(const ParameterStore& store, const MoeDeck& moe, const Kernels& kernels,
                                      std::int64_t uses, bool backward) {
  std::vector<PackedSizes> sizes(store.specs().size());
  constexpr std::int64_t kFewestUses = 6;  // making both copies takes as long as they save in four passes
  const PackedKernels* packed = kernels.matmul.packed;
  if (!moe.packed_weights || uses < kFewestUses || packed == nullptr) return sizes;
  for (std::size_t p = 0; p < sizes.size(); ++p) {
    const ParameterSpec& spec = store.specs()[p];
    if (spec.placement != Placement::expert || !spec.is_matrix()) continue;
    sizes[p].straight = packed->size(store.compute(), spec.rows, spec.cols);
    if (backward) sizes[p].transposed = packed->size(store.compute(), spec.cols, spec.rows);
  }
  return sizes;
}

}  // namespace flanmoe
