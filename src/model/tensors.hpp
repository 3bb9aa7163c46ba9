// The tensors of a model, said once: every use (allocation, initialisation, checkpoint, gradient) walks this set.
#pragma once

#include <string>
#include <vector>

#include "deck/deck.hpp"
#include "moe/feed_forward_tensors.hpp"
#include "tensor/parameters.hpp"

namespace flanmoe {

template <class T>
struct AttentionTensors {
  T norm_D{};
  T query_DQ{}, key_DQ{}, value_DQ{}, output_QD{};  // key and value have the columns of the key/value heads
};

template <class T>
struct LayerTensors {
  AttentionTensors<T> self;   // decoder-only models: its norm is that of the feed-forward too
  AttentionTensors<T> cross;  // decoder of an encoder-decoder model
  T feed_forward_norm_D{};    // encoder-decoder models
  bool sparse = false;
  FeedForwardTensors<T> dense;  // used when not sparse
  MoeTensors<T> moe;            // used when sparse
  T extra_norm_D{};             // with moe.extra_feed_forward: a dense sublayer behind the sparse one
  FeedForwardTensors<T> extra;
};

template <class T>
struct StackTensors {
  T relative_bias_UH{};  // encoder-decoder models
  std::vector<LayerTensors<T>> layers;
  T final_norm_D{};
};

template <class T>
struct ModelTensors {
  T embedding_VD{};
  StackTensors<T> encoder, decoder;
  T logits_DV{};  // absent when the logits are tied to the embedding
};

/// Layer l (from 0) of a stack is sparse iff l % every == every-1 (flaxformer MIXED placement; paper facts 1.7).
bool is_sparse_layer(const MoeDeck& moe, bool encoder, std::int64_t layer);

/// "encoder/layer_03"
std::string layer_name(bool encoder, std::int64_t layer);

/// The set with, for each tensor, its index in model_parameters().
ModelTensors<int> model_tensors(const ModelDeck& model, const MoeDeck& moe);

}  // namespace flanmoe
