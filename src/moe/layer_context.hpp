// What every layer of the model is given besides its operands.
#pragma once

#include <cstdint>
#include <span>

#include "deck/deck.hpp"
#include "kernels/kernels.hpp"
#include "tensor/parameters.hpp"

namespace flanmoe {

struct LayerContext {
  KernelContext& context;
  const Kernels& k;
  ParameterStore& store;
  const Deck& deck;
  bool training = false;
  std::int64_t step = 0;

  DType compute() const { return store.compute(); }
  DType accumulate() const { return accumulate_dtype(store.compute()); }
  bool mixed() const { return compute() != accumulate(); }
  /// The norm of the model.
  const NormKernels& norm() const { return deck.model.norm == "layer" ? k.layer_norm : k.norm; }
  const Tensor& weight(int parameter) const { return store.weight(parameter); }
  // The first contribution of a step to a gradient is written, or added to zeros; later ones are added. Both of these
  // count as a contribution to all experts of the parameter, which must follow.
  /// The gradient, to be added to. Absent when the parameter is frozen.
  Tensor gradient(int parameter, std::int64_t expert = 0) const {
    if (trains(parameter) && store.first_contribution(parameter)) {
      for (std::int64_t e = 0; e < store.local_experts(parameter); ++e) {
        for (std::int64_t s = 0; s < store.sources(parameter); ++s) {
          k.elementwise.zero(context, store.gradient(parameter, e, s));
        }
      }
    }
    return store.gradient(parameter, expert);
  }
  /// What a product that writes the gradient (of store.gradient()) leaves of it.
  float beta(int parameter) const { return store.first_contribution(parameter) ? 0.0F : 1.0F; }
  bool trains(int parameter) const { return store.trained(parameter); }
  /// The gradient of a table by what was looked up in it, to be added to: its own where the store keeps lookups apart.
  Tensor lookup_gradient(int table) const {
    const Tensor apart = store.lookup_gradient(table);
    if (apart.absent()) return gradient(table);
    k.elementwise.zero(context, apart);
    return apart;
  }

  /// Random numbers of one place in the model in this step.
  RandomKey random(RandomPurpose purpose, std::uint32_t site) const {
    return {std::uint64_t(deck.run.seed), purpose, std::uint32_t(step), site};
  }
  /// Mask of a dropout site; rate 0 outside training. `site` numbers the places where dropout is applied.
  DropoutMask mask(double rate, std::uint32_t site, std::span<const std::int64_t> row_T,
                   std::span<const std::int32_t> position_T, std::int64_t columns_per_mask = 1) const {
    return {training ? float(rate) : 0.0F, random(RandomPurpose::dropout, site), row_T, position_T,
            int(columns_per_mask)};
  }
};

/// Leaves of a list of their boundaries.
inline std::int64_t leaf_count(std::span<const std::int64_t> leaves) { return std::int64_t(leaves.size()) - 1; }

/// Adds x^T . dy to the gradient of a dense weight, summed leaf by leaf of its rows; frozen ones cost nothing.
inline void add_weight_gradient(const LayerContext& c, int parameter, const Tensor& x, const Tensor& dy,
                                std::span<const std::int64_t> leaves) {
  if (!c.trains(parameter)) return;
  const Tensor gradient = c.store.gradient(parameter, 0);
  c.k.matmul.grouped_weight_gradient(c.context, {&gradient, 1}, x, dy, leaves, c.beta(parameter));
}

/// The first n rows of a buffer that was laid for the largest microbatch.
inline Tensor first_rows(const Tensor& t, std::int64_t n) { return t.slice_rows(0, n); }

}  // namespace flanmoe
