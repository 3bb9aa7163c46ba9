// The tensors of a feed-forward and of a sparse layer, said once.
#pragma once

namespace flanmoe {

/// gate is used by gated activations only, scale (1 x F) by model.multiplicative_bias. Dense: D x F, D x F, F x D;
/// experts: the same per expert.
template <class T>
struct FeedForwardTensors {
  T gate{}, up{}, down{}, scale{};
};

template <class T>
struct MoeTensors {
  T router_DE{};
  T bias_E{};  // with moe.bias_rate, where tokens choose
  FeedForwardTensors<T> experts;
  FeedForwardTensors<T> shared;  // with moe.shared_experts: side by side, one feed-forward of that many times F
};

}  // namespace flanmoe
