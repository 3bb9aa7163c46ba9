// The tensors of a feed-forward and of a sparse layer, said once.
#pragma once

namespace flanmoe {

/// gate is used by gated activations only. Dense: D x F, D x F, F x D; experts: the same per expert.
template <class T>
struct FeedForwardTensors {
  T gate{}, up{}, down{};
};

template <class T>
struct MoeTensors {
  T router_DE{};
  FeedForwardTensors<T> experts;
};

}  // namespace flanmoe
