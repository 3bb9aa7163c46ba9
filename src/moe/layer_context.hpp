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
  const ParameterStore& store;
  const Deck& deck;
  bool training = false;
  std::int64_t step = 0;

  DType compute() const { return store.compute(); }
  DType accumulate() const { return accumulate_dtype(store.compute()); }
  bool mixed() const { return compute() != accumulate(); }
  /// The norm of the model.
  const NormKernels& norm() const { return deck.model.norm == "layer" ? k.layer_norm : k.norm; }
  const Tensor& weight(int parameter) const { return store.weight(parameter); }
  /// Absent when the parameter is frozen.
  Tensor gradient(int parameter, std::int64_t expert = 0) const { return store.gradient(parameter, expert); }
  bool trains(int parameter) const { return store.trained(parameter); }

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

/// Adds x^T . dy to the gradient of a dense weight; frozen ones cost nothing.
inline void add_weight_gradient(const LayerContext& c, int parameter, const Tensor& x, const Tensor& dy) {
  if (!c.trains(parameter)) return;
  c.k.matmul.product(c.context, c.gradient(parameter), x, Transpose::yes, dy, Transpose::no, 1.0F);
}

/// The first n rows of a buffer that was laid for the largest microbatch.
inline Tensor first_rows(const Tensor& t, std::int64_t n) { return t.slice_rows(0, n); }

}  // namespace flanmoe
