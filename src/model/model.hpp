// The model, dense or with Mixture-of-Experts feed-forwards; explicit forward and backward. Two families: t5 is an
// encoder and a decoder, palm a decoder that reads input and target of a segment as one sequence.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "data/batch.hpp"
#include "deck/deck.hpp"
#include "kernels/kernels.hpp"
#include "model/decoding.hpp"
#include "moe/router.hpp"
#include "parallel/communicator.hpp"
#include "tensor/parameters.hpp"

namespace flanmoe {

/// Sums over the target tokens of this rank since reset(); additive over microbatches and ranks.
struct StepStatistics {
  double nll = 0, z = 0, hits = 0, targets = 0;
  std::vector<MoeLayerStatistics> moe;

  void reset();
  /// All numbers in a fixed order, and back: for one deterministic sum over ranks.
  std::vector<double> pack() const;
  void unpack(const std::vector<double>& values);
};

/// Balance and router z-loss times their coefficients, mean or sum over the sparse layers; from sums over all ranks.
double auxiliary_loss(const StepStatistics& statistics, const MoeDeck& moe);

/// Largest microbatch a model must hold.
struct BatchLimits {
  std::int64_t rows = 0, encoder_tokens = 0, decoder_tokens = 0;
  std::int64_t longest_input = 0, longest_target = 0;  // of one segment
  /// Above 0: every microbatch is so many equal parts, a power of two, over which gradients and losses are summed along
  /// one binary tree. 0: sums have no particular order.
  std::int64_t leaves = 0;

  std::int64_t cut() const { return leaves > 0 ? leaves : 1; }  // parts of a microbatch
};

/// Is told of every bucket of gradients (ParameterSpec::bucket), in their order, as soon as a backward pass contributes
/// nothing more to it. A device may still have to compute what was contributed.
using BucketListener = std::function<void(std::int64_t bucket)>;

/// The parameters of a deck's model, in the order of the forward pass. Needs no MPI and no memory.
std::vector<ParameterSpec> model_parameters(const ModelDeck& model, const MoeDeck& moe);

class Model {
 public:
  /// Binds to the weights (and, when laid, gradients) of the store, which was made from model_parameters().
  Model(const Deck& deck, ParameterStore& store, const Communicators& communicators, const Kernels& kernels);
  ~Model();

  /// Lays activations (and, when training, their gradients) for microbatches within the limits. Call on a measuring
  /// arena, commit it, rewind, and call again. scratch is measured the same way.
  void lay(Arena& activations, Arena& scratch, const BatchLimits& limits, bool training);

  /// Forward and backward of one microbatch: gradients of (sum of target losses / step_target_tokens + auxiliary
  /// losses) are written to the store's gradients, or added to those of earlier microbatches since
  /// ParameterStore::forget_gradients(); sums are added to `statistics`. Collective over the expert group:
  /// every rank of it calls, with rows or without. Dropout, capacity and random numbers depend on batch.step and global
  /// rows only. `completed` may be empty.
  void forward_backward(KernelContext&, const PackedBatch& batch, StepStatistics& statistics,
                        const BucketListener& completed = {});

  /// Forward only, evaluation mode (no dropout, capacity_factor_eval). `decoder_encoder_S[s]`: the encoder segment that
  /// decoder segment s looks at (empty: the same index), so that several targets share one input. Returns the negative
  /// log-likelihood of every target token. Collective over the expert group.
  std::vector<float> evaluate(KernelContext&, const PackedBatch& batch,
                              const std::vector<std::int32_t>& decoder_encoder_S, StepStatistics& statistics);

  /// Names of the sparse layers, in the order of StepStatistics::moe.
  const std::vector<std::string>& moe_layers() const;
  const Deck& deck() const;

  struct State;
  State& state() { return *state_; }

 private:
  std::unique_ptr<State> state_;
};

/// One text to go on from.
struct GenerateRequest {
  std::vector<std::int32_t> input;  // without EOS, which is appended here; trimmed to the model's limits
  std::uint64_t id = 0;             // names the example in the random numbers of sampling
};
/// Decoding with a KV cache. Collective over the expert group, with any number of requests on each rank (0 too); a
/// row's result does not depend on which other rows are decoded with it. Uses the memory laid by Model::lay(training =
/// false) with longest_target >= options.max_new_tokens and rows >= options.beams. Beam search and sampling need memory
/// that lay() takes when the deck's evaluate.beams and evaluate.temperature ask for it.
std::vector<Generated> generate(Model&, KernelContext&, const std::vector<GenerateRequest>& requests,
                                const DecodingOptions& options);
/// The tokens of greedy decoding without stop strings.
std::vector<std::vector<std::int32_t>> generate_greedy(Model&, KernelContext&,
                                                       const std::vector<std::vector<std::int32_t>>& inputs,
                                                       std::int64_t max_new_tokens);

/// Candidate targets of one input, to be scored.
struct ScoreRequest {
  std::vector<std::int32_t> input;                 // without EOS
  std::vector<std::vector<std::int32_t>> targets;  // without EOS
};
/// Log-likelihood of each target including its EOS, for every request of this rank. Collective like generate_greedy;
/// cuts its work into microbatches within the limits of lay().
std::vector<std::vector<double>> score_targets(Model&, KernelContext&, const std::vector<ScoreRequest>& requests);

}  // namespace flanmoe
