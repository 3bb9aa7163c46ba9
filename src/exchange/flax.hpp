// Checkpoints of T5X in one msgpack file (flax.serialization): nested maps of names; an array is a value of extension
// type 1 that holds msgpack of [shape, dtype name, little-endian elements].
#pragma once

#include <string>
#include <vector>

#include "deck/deck.hpp"
#include "exchange/tensor_source.hpp"

namespace flanmoe {

/// The arrays under optimizer/target (or target), named by their path below it: "encoder/layers_0/mlp/wo/kernel".
/// The whole file is kept in memory.
class FlaxCheckpoint final : public TensorSource {
 public:
  /// Refuses what is no such file, and arrays whose size does not follow from shape and type.
  explicit FlaxCheckpoint(const std::string& path);
  const TensorTable& tensors() const override { return table_; }
  void read(std::string_view name, std::span<float> out) const override;
  /// optimizer/state/step, or 0 where the file has none.
  std::int64_t step() const { return step_; }

 private:
  std::map<std::string, std::vector<char>, std::less<>> elements_;
  TensorTable table_;
  std::int64_t step_ = 0;
};

/// The sections [model] and [moe] of a dense T5 with these tensors, found from their shapes. T5X keeps the rest in its
/// configuration files: the distance of the last bucket and the norm's epsilon are those of T5.
std::string deck_text_of_t5x(const FlaxCheckpoint& checkpoint, const std::string& path);

}  // namespace flanmoe
