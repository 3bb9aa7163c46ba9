// What a planner knows of a machine: how fast one rank computes while all ranks of its node do, and how fast messages
// travel. Measured by calibrate(), or written by hand.
#pragma once

#include <array>
#include <cstdint>
#include <string>

#include "tensor/dtype.hpp"

namespace flanmoe {

/// Work that is counted in elements: one pass over a tensor, forward and backward together where there are both.
enum class Stream : std::uint8_t {
  norm,        // element of the input of a norm
  residual,    // element added to the residual stream
  dropout,     // element of a dropout mask
  relu,        // hidden element
  gated,       // hidden element of gated GELU or SwiGLU
  router,      // token x expert: softmax, choice, slots, losses
  permute,     // element of a routed copy: to expert order, back and summed
  softmax,     // target x vocabulary, beside the products of the logits
  embedding,   // element looked up
  adamw,       // updated parameter
  factored,    // the same of Adafactor with factors
  unfactored,  // the same of Adafactor with a full second moment
  publish,     // parameter of this rank: rounded to the working weight
  count
};
const char* name_of(Stream stream);

/// Seconds of a matrix product = calls * call_seconds + operations / flops + bytes / bytes_per_second, where the bytes
/// are those of both operands and of the result.
struct ProductRate {
  double call_seconds = 0, flops = 0, bytes_per_second = 0;
  double seconds(double calls, double operations, double bytes) const {
    return calls * call_seconds + operations / flops + bytes / bytes_per_second;
  }
};

/// Seconds of attention, forward and backward = operations / flops + elements * element_seconds; elements of queries.
struct AttentionRate {
  double flops = 0, element_seconds = 0;
};

/// A message of n bytes takes latency_seconds + n / bytes_per_second.
struct LinkRate {
  double latency_seconds = 0, bytes_per_second = 0;
};

constexpr int kPrecisions = 2;  // fp32, bf16
inline std::size_t precision_index(DType compute) { return compute == DType::bf16 ? 1 : 0; }

struct Machine {
  std::string name = "unnamed";
  std::int64_t nodes = 1, ranks_per_node = 1, threads_per_rank = 1;
  double memory_bytes_per_node = 0;                        // 0: not known
  double program_bytes_per_rank = 0;                       // of a started program before it takes memory for a model
  double bytes_per_second = 0;                             // memory traffic of one rank
  std::array<ProductRate, kPrecisions> product{};          // activations by weights
  std::array<ProductRate, kPrecisions> weight_gradient{};  // added to fp32 gradients
  std::array<AttentionRate, kPrecisions> attention{};
  std::array<std::array<double, kPrecisions>, std::size_t(Stream::count)> stream_seconds{};  // per element
  LinkRate in_node, between_nodes;

  double stream(Stream stream, DType compute) const {
    return stream_seconds[std::size_t(stream)][precision_index(compute)];
  }
};

/// A machine of which only the speed of large products is known; the rest follows from ordinary proportions.
Machine machine_of_speed(double flops_per_rank, double bytes_per_second);

/// Messages of the ranks of one node, where nothing was measured.
LinkRate link_through_memory(double bytes_per_second);

/// Reads a description: JSON with comments. What is left out follows from the rates of products and memory. Throws
/// UsageError naming file and key.
Machine read_machine(const std::string& path);
std::string machine_text(const Machine& machine);

}  // namespace flanmoe
