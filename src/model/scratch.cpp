// Scratch memory of the kernels of one microbatch.
#include <algorithm>

#include "model/model_state.hpp"

namespace flanmoe {

std::size_t kernel_scratch_bytes(const Kernels& k, const Deck& deck, DType compute, const BatchLimits& limits,
                                 const CrossEntropyShape& shape) {
  const std::int64_t tokens = std::max(limits.encoder_tokens, limits.decoder_tokens);
  // One kernel runs at a time; the loss calls products while it holds its own scratch.
  return k.matmul.scratch_bytes() +
         std::max({k.cross_entropy.scratch_bytes(limits.decoder_tokens, deck.model.vocabulary, compute, shape),
                   k.norm.scratch_bytes(tokens, deck.model.width), k.router.scratch_bytes(tokens)});
}

}  // namespace flanmoe
