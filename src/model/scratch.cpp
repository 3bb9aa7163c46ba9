// Scratch memory of the kernels of one microbatch.
#include <algorithm>

#include "model/model_state.hpp"
#include "moe/leaves.hpp"

namespace flanmoe {

std::size_t kernel_scratch_bytes(const Kernels& k, const Deck& deck, DType compute, const BatchLimits& limits,
                                 const CrossEntropyShape& shape, std::int64_t expert_ranks) {
  const std::int64_t tokens = std::max(limits.encoder_tokens, limits.decoder_tokens);
  const std::int64_t longest = std::max(limits.longest_input, limits.longest_target);
  const AttentionShape attention{int(deck.model.heads), int(deck.model.head_width), false, 1.0F};
  // The largest of the gradients that are summed by add_small_gradient().
  const std::int64_t hidden = std::max<std::int64_t>(1, deck.moe.shared_experts) * deck.model.hidden;
  const std::int64_t numbers = std::max({deck.model.width, hidden, deck.model.heads * deck.model.bias_buckets});
  // Those of experts may have the leaves of all ranks of their group.
  const std::size_t sums =
      small_gradient_bytes(std::size_t(numbers) * size_of(accumulate_dtype(compute)), limits.cut() * expert_ranks);
  // One kernel runs at a time, and what it says includes the kernels that it calls.
  return sums +
         std::max({k.matmul.scratch_bytes(), k.attention.scratch_bytes(longest, compute, attention),
                   k.cross_entropy.scratch_bytes(limits.decoder_tokens, deck.model.vocabulary, compute, shape),
                   k.norm.scratch_bytes(tokens, deck.model.width), k.layer_norm.scratch_bytes(tokens, deck.model.width),
                   k.router.scratch_bytes(tokens, deck.moe.experts),
                   k.embedding.scratch_bytes(limits.encoder_tokens + limits.decoder_tokens)});
}

}  // namespace flanmoe
