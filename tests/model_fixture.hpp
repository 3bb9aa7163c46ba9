// A small model with everything it needs, and random batches for it.
#pragma once

#include <gtest/gtest.h>

#include <cmath>
#include <filesystem>
#include <fstream>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "model/freeze.hpp"
#include "model/model.hpp"
#include "moe/packed_weights.hpp"
#include "parallel/communicator.hpp"

namespace flanmoe::testing {

/// 2 + 2 layers, width 12, 3 heads of 4; two sparse layers of 4 experts when `sparse`.
inline Deck tiny_deck(bool sparse) {
  Deck deck;
  deck.run.seed = 5;
  deck.model.vocabulary = 23;
  deck.model.width = 12;
  deck.model.hidden = 10;
  deck.model.heads = 3;
  deck.model.head_width = 4;
  deck.model.encoder_layers = 2;
  deck.model.decoder_layers = 2;
  deck.model.bias_buckets = 8;
  deck.model.bias_max_distance = 16;
  deck.moe.router = sparse ? "top_k" : "none";
  deck.moe.experts = 4;
  deck.moe.min_capacity = 1;
  deck.moe.router_init = 0.5;
  deck.batch.input_length = 12;
  deck.batch.target_length = 8;
  return deck;
}

/// The same as a decoder-only model of the palm family: two layers, three heads that share their keys.
inline Deck tiny_palm(bool sparse, const std::string& attention = "causal") {
  Deck deck = tiny_deck(sparse);
  deck.model.family = "palm";
  deck.model.encoder_layers = 0;
  deck.model.attention = attention;
  deck.model.kv_heads = 1;
  deck.model.activation = "gated_swish";
  deck.model.norm = "layer";
  deck.model.tied_logits = true;
  return deck;
}

inline std::vector<std::int32_t> random_ids(std::mt19937& random, std::int64_t count, std::int64_t vocabulary) {
  std::vector<std::int32_t> ids(std::size_t(count), 1);
  for (std::int64_t i = 0; i + 1 < count; ++i) {
    ids[std::size_t(i)] = std::int32_t(3 + random() % std::uint64_t(vocabulary - 3));
  }
  return ids;
}

/// `rows` rows of one or two segments of random lengths; the same for the same seed.
inline PackedBatch random_batch(const Deck& deck, std::int64_t rows, unsigned seed) {
  std::mt19937 random(seed);
  PackedBatch batch;
  batch.rows = batch.step_rows = rows;
  batch.step = 3;
  batch.encoder.row_first.assign(1, 0);
  batch.decoder.row_first.assign(1, 0);
  for (std::int64_t r = 0; r < rows; ++r) {
    const std::int64_t segments = 1 + std::int64_t(random() % 2);
    for (std::int64_t s = 0; s < segments; ++s) {
      const auto length = [&](std::int64_t most) {
        return 2 + std::int64_t(random() % std::uint64_t(most / segments - 1));
      };
      const auto input = random_ids(random, length(deck.batch.input_length), deck.model.vocabulary);
      const auto target = random_ids(random, length(deck.batch.target_length), deck.model.vocabulary);
      batch.encoder.segment_begin_S.push_back(std::int32_t(batch.encoder.tokens()));
      batch.encoder.segment_count_S.push_back(std::int32_t(input.size()));
      batch.decoder.segment_begin_S.push_back(std::int32_t(batch.decoder.tokens()));
      batch.decoder.segment_count_S.push_back(std::int32_t(target.size()));
      batch.segment_row_S.push_back(std::int32_t(r));
      batch.segment_task_S.push_back(0);
      batch.encoder.token_T.insert(batch.encoder.token_T.end(), input.begin(), input.end());
      batch.decoder.token_T.push_back(0);
      batch.decoder.token_T.insert(batch.decoder.token_T.end(), target.begin(), target.end() - 1);
      batch.target_T.insert(batch.target_T.end(), target.begin(), target.end());
    }
    batch.encoder.row_first.push_back(batch.encoder.tokens());
    batch.decoder.row_first.push_back(batch.decoder.tokens());
  }
  batch.step_encoder_tokens = batch.encoder.tokens();
  batch.step_target_tokens = batch.decoder.tokens();
  batch.step_segments = std::int64_t(batch.segment_row_S.size());
  return batch;
}

/// Rows [first, first+count) of a batch; the sizes of the whole step stay.
inline PackedBatch take_rows(const PackedBatch& whole, std::int64_t first, std::int64_t count) {
  PackedBatch part = whole;
  part.first_row = whole.first_row + first;
  part.rows = count;
  part.encoder = {};
  part.decoder = {};
  part.target_T.clear();
  part.segment_row_S.clear();
  part.segment_task_S.clear();
  const auto cut = [&](RaggedSide& to, const RaggedSide& from) {
    const std::int64_t begin = from.row_first[std::size_t(first)];
    const std::int64_t end = from.row_first[std::size_t(first + count)];
    to.token_T.assign(from.token_T.begin() + begin, from.token_T.begin() + end);
    for (std::int64_t r = 0; r <= count; ++r) to.row_first.push_back(from.row_first[std::size_t(first + r)] - begin);
    for (std::size_t s = 0; s < from.segment_begin_S.size(); ++s) {
      if (from.segment_begin_S[s] < begin || from.segment_begin_S[s] >= end) continue;
      to.segment_begin_S.push_back(std::int32_t(from.segment_begin_S[s] - begin));
      to.segment_count_S.push_back(from.segment_count_S[s]);
    }
  };
  cut(part.encoder, whole.encoder);
  cut(part.decoder, whole.decoder);
  const std::int64_t begin = whole.decoder.row_first[std::size_t(first)];
  const std::int64_t end = whole.decoder.row_first[std::size_t(first + count)];
  part.target_T.assign(whole.target_T.begin() + begin, whole.target_T.begin() + end);
  for (std::size_t s = 0; s < whole.segment_row_S.size(); ++s) {
    const std::int32_t row = whole.segment_row_S[s];
    if (row < first || row >= first + count) continue;
    part.segment_row_S.push_back(std::int32_t(row - first));
    part.segment_task_S.push_back(whole.segment_task_S[s]);
  }
  return part;
}

/// A model in committed memory with initial weights (no optimizer). `uses`: of packed_sizes(); who writes weights then
/// has to say so.
struct TestModel {
  Deck deck;
  ProcessGrid grid;
  Communicators communicators;
  const Kernels& kernels;
  ParameterStore store;
  Arena weights{"weights"}, gradients{"gradients"}, activations{"activations"}, scratch{"scratch"};
  std::unique_ptr<Model> model;
  KernelContext context;

  TestModel(const Deck& deck_in, const Communicator& world, int expert_degree, const std::string& device, DType compute,
            const BatchLimits& limits, bool training = true, std::int64_t uses = 1)
      : deck(deck_in),
        grid(world.size(), world.rank(), expert_degree),
        communicators(Communicators::make(world, grid)),
        kernels(kernels_for(device)),
        store(training_parameters(deck), grid.coordinates(), compute) {
    model = std::make_unique<Model>(deck, store, communicators, kernels);
    GradientSums sums;
    sums.leaves = limits.leaves > 0;
    if (sums.leaves && deck.model.tied_logits) sums.table = store.find("embedding");
    const std::vector<PackedSizes> packed = packed_sizes(store, deck.moe, kernels, uses, training);
    for (const bool real : {false, true}) {
      store.lay(weights, &gradients, sums, packed);
      model->lay(activations, scratch, limits, training);
      if (real) break;
      for (Arena* arena : {&weights, &gradients, &activations, &scratch}) {
        arena->commit();
        arena->rewind();
      }
    }
    context.scratch = &scratch;
    initialize();
  }

  void initialize() {
    for (std::size_t p = 0; p < store.specs().size(); ++p) {
      const ParameterSpec& spec = store.specs()[p];
      std::vector<double> values(std::size_t(spec.matrix_size()));
      const Tensor full = make_tensor(values.data(), spec.rows, spec.cols);
      for (std::int64_t e = 0; e < store.local_experts(int(p)); ++e) {
        initialize_matrix(full, spec, store.first_expert(int(p)) + e, std::uint64_t(deck.run.seed));
        if (store.weight(int(p)).dtype == DType::f64) {
          kernels_for("reference").elementwise.convert(context, store.weight(int(p)).matrix(e), full);
        } else {
          std::vector<float> rounded(values.begin(), values.end());
          kernels_for("reference")
              .elementwise.convert(context, store.weight(int(p)).matrix(e),
                                   make_tensor(rounded.data(), spec.rows, spec.cols));
        }
      }
    }
  }

  /// As between two steps; what is not written by the next one shows.
  void forget_gradients() {
    store.forget_gradients();
    for (const Placement placement : {Placement::dense, Placement::expert}) {
      const Tensor flat = store.gradient_flat(placement);
      if (flat.dtype == DType::f64) {
        for (double& x : flat.flat<double>()) x = std::nan("");
      } else {
        for (float& x : flat.flat<float>()) x = std::nanf("");
      }
    }
  }

  /// The loss whose gradient forward_backward computes, of a batch that is the whole step.
  double loss(const PackedBatch& batch) {
    StepStatistics statistics;
    model->forward_backward(context, batch, statistics);
    return (statistics.nll + statistics.z) / statistics.targets + auxiliary_loss(statistics, deck.moe);
  }
};

inline BatchLimits limits_of(const Deck& deck, std::int64_t rows) {
  return {rows, rows * deck.batch.input_length, rows * deck.batch.target_length, deck.batch.input_length,
          deck.batch.target_length};
}

/// A communicator of this rank only.
inline Communicator alone() {
  const Communicator world = Communicator::world();
  return world.split(world.rank(), 0, "alone");
}

/// The sparse presets with every key they set, at the size of the tiny deck and with losses that show.
inline Deck preset_deck(const std::string& name) {
  const std::string path =
      ::testing::TempDir() + fmt::format("flanmoe_preset_{}_{}.ini", name, Communicator::world().rank());
  std::ofstream(path) << "[model]\npreset = " << name << "\n";
  const Deck preset = parse_deck(path, {});
  std::filesystem::remove(path);
  Deck deck = tiny_deck(true);
  const MoeDeck small = deck.moe;
  deck.moe = preset.moe;
  deck.moe.experts = small.experts;
  deck.moe.every = 2;
  deck.moe.min_capacity = 1;
  deck.moe.router_init = small.router_init;
  deck.moe.balance_coefficient = 0.3;
  deck.moe.z_coefficient = 10 * preset.moe.z_coefficient;
  deck.model.activation = preset.model.activation;
  deck.model.tied_logits = preset.model.tied_logits;
  return deck;
}
inline const std::vector<std::string> kSparsePresets = {"switch", "gshard", "token_choice", "expert_choice", "st_moe"};

}  // namespace flanmoe::testing
