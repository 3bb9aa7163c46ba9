// The parts of a model, shared by the files of this folder.
#pragma once

#include <memory>
#include <optional>

#include "data/shard.hpp"
#include "model/joined.hpp"
#include "model/stack.hpp"

namespace flanmoe {

/// Memory for decoding with a KV cache, laid for evaluation only. Decoder-only models keep input and output of a row in
/// its rows of the self cache and have no cross cache.
struct DecodingCache {
  struct Layer {
    Tensor self_k_CQ, self_v_CQ;    // C: row r of the batch owns cache rows [r*longest, (r+1)*longest)
    Tensor cross_k_TQ, cross_v_TQ;  // C: of the encoder's tokens
  };
  std::vector<Layer> layers;
  Tensor spare_CQ;               // C: takes the place of a self cache whose rows are reordered; beam search only
  Tensor logits_BV;              // A
  Tensor slot_T;                 // i32: room for the cache rows that new keys go to
  Tensor last_B;                 // i32: room for the last new token of each row; decoder-only models
  std::vector<double> weight_V;  // sampling only; on the host, which chooses tokens
  std::vector<std::int32_t> order_V;
  std::int64_t longest = 0;
};

struct Model::State {
  Deck deck;
  ParameterStore& store;
  const Communicators& communicators;
  const Kernels& kernels;
  ModelTensors<int> tensors;
  std::optional<Dispatcher> dispatcher;
  std::vector<std::string> moe_layers;
  std::unique_ptr<Stack> encoder, decoder;  // decoder-only models have no encoder
  StackWork work;
  Side encoder_side, decoder_side;
  SideRoom encoder_room, decoder_room;
  JoinedBatch joined;               // decoder-only models: what decoder_side views
  Tensor joined_T, target_T;        // i32: room for JoinedBatch::place_T; for the targets
  Tensor nll_T, z_T, hit_T;         // A: per target token
  Tensor loss_LS;                   // f64: sums of the three, leaf by leaf
  std::vector<double> losses_LS;    // the same on the host
  std::optional<HostRoom> on_host;  // of nll_T in evaluation, of logits in decoding
  /// A: sums over leaves of the gradient of the logits' matrix that wait for their neighbours.
  Tensor dlogits_waiting;
  std::vector<std::int64_t> target_leaf, chunk_leaf;  // boundaries among the target tokens, and those of a chunk
  DecodingCache cache;
  BatchLimits limits;
  bool training = false;

  State(const Deck& deck, ParameterStore& store, const Communicators& communicators, const Kernels& kernels);
  LayerContext context(KernelContext& kernel, bool train, std::int64_t step) const {
    return {kernel, kernels, store, deck, train, step};
  }
  int logits() const { return deck.model.tied_logits ? tensors.embedding_VD : tensors.logits_DV; }
  CrossEntropyShape cross_entropy_shape(double gradient_scale) const;
  bool decoder_only() const { return deck.model.decoder_only(); }
  /// What the stacks must hold.
  BatchLimits stack_limits() const { return decoder_only() ? joined_limits(limits) : limits; }
  void bind(KernelContext& kernel, const PackedBatch& batch, const std::vector<std::int32_t>& decoder_encoder_S,
            bool train);
  Tensor list(KernelContext& kernel, const Tensor& room, const std::vector<std::int32_t>& list) const {
    return list_on_device(kernel, kernels.transfer, room, list);
  }
  /// Leaves whose target tokens make one chunk of logits.
  std::int64_t chunk_leaves() const;
  /// Losses of all targets, their gradient by the decoder's output, in target_gradient(), and by the logits' matrix.
  void loss(const LayerContext& c, const PackedBatch& batch, const Tensor& decoded_TD);
  /// The decoder's output (C) for every target token, in buffers that the backward uses again.
  Tensor forward(const LayerContext& c, StepStatistics& statistics);
  /// Adds the gradient of the embedding by what was looked up in it.
  void add_lookups(const LayerContext& c, const Tensor& dx_TD, const Tensor& ids_T,
                   const std::vector<std::int64_t>& leaves) const;
  /// From the gradient of what forward() returned, in target_gradient().
  void backward(const LayerContext& c, GradientBuckets& buckets);
  Tensor target_gradient(std::int64_t targets) const;
  void check_fits(const RaggedSide& inputs, const RaggedSide& targets) const;
  void prepare(StepStatistics& statistics) const;
  /// Memory for decoding and scoring.
  void lay_evaluation(Arena& activations, const BatchLimits& most);
  /// Sums over nll_T, z_T and hit_T of the target tokens, leaf by leaf, on the device.
  void sum_losses(KernelContext& kernel) const;
  /// Adds them to the statistics. Waits for the device.
  void add_losses(KernelContext& kernel, StepStatistics& statistics);
};

/// Bytes of scratch that the kernels of one microbatch need.
std::size_t kernel_scratch_bytes(const Kernels&, const Deck&, DType compute, const BatchLimits&,
                                 const CrossEntropyShape&, std::int64_t expert_ranks);
/// New tokens of a row that is being decoded.
struct NewTokens {
  std::int32_t slot = 0;   // the row of the cache
  std::int32_t place = 0;  // of the first one in the row's sequence
  TokenIds tokens;         // at least one
};
/// Runs a decoder-only model on new tokens, whose keys and values go to the cache, and leaves the logits behind the
/// last one of each row there. Needs Stack::expand_positions() before the first call. Collective over the expert group.
void extend_rows(const LayerContext&, Model::State&, const std::vector<NewTokens>& news, StepStatistics&);
/// A batch of single-segment rows: segment s is row s. Used by decoding and scoring.
void append_row(RaggedSide& side, const TokenIds& tokens);
/// The first longest - 1 tokens, and EOS.
TokenIds with_eos(TokenIds ids, std::int64_t longest);

}  // namespace flanmoe
