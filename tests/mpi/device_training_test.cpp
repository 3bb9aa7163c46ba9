// Training between GPUs: sums of gradients over ranks that run beside the backward pass.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <memory>
#include <string>
#include <vector>

#include "full_batch.hpp"
#include "kernels/cuda/runtime.hpp"
#include "model_fixture.hpp"
#include "optimizer/optimizer.hpp"
#include "parallel/device_communicator.hpp"
#include "tensor/checksum.hpp"
#include "train/trainer.hpp"

namespace flanmoe {
namespace {

/// Hands over to a communicator of devices and notes what is started: s for sums, r for rows, g for gathers.
class NotedTransport : public TensorTransport {
 public:
  NotedTransport(const Communicator& host, cudaStream_t compute, cudaStream_t communication, std::string& notes)
      : devices_(host, compute, communication), notes_(notes) {}
  Ticket start_all_to_all_rows(const Tensor& receive, std::span<const RowRange> receive_rows, const Tensor& send,
                               std::span<const RowRange> send_rows) const override {
    notes_ += 'r';
    return devices_.start_all_to_all_rows(receive, receive_rows, send, send_rows);
  }
  Ticket start_reduce_scatter_tree(const Tensor& flat, std::span<const std::int64_t> sizes,
                                   const Tensor& work) const override {
    notes_ += 's';
    return devices_.start_reduce_scatter_tree(flat, sizes, work);
  }
  Ticket start_all_gather_segments(const Tensor& flat, std::span<const std::int64_t> sizes) const override {
    notes_ += 'g';
    return devices_.start_all_gather_segments(flat, sizes);
  }
  void finish(Ticket ticket) const override { devices_.finish(ticket); }

 private:
  DeviceCommunicator devices_;
  std::string& notes_;
};

/// A GPU with streams as those of a run, and the ranks' communicators between such GPUs.
struct Gpus {
  Gpus(const Communicator& world, int degree)
      : grid(world.size(), world.rank(), degree), communicators(Communicators::make(world, grid)) {
    for (Communicator* c : {&communicators.world, &communicators.data, &communicators.expert}) {
      if (c->size() == 1) continue;
      const cuda::Stream& stream = c == &communicators.expert ? rows : sums;
      c->carry_by(std::make_unique<NotedTransport>(*c, compute.get(), stream.get(), notes));
    }
  }
  KernelContext context() { return {nullptr, compute.get(), &staging}; }

  cuda::Stream compute, rows{true}, sums{true};
  cuda::Staging staging{std::size_t{1} << 20};
  std::string notes;
  ProcessGrid grid;
  Communicators communicators;
};

/// Two microbatches of one row on every rank.
Deck small_deck(const Communicator& world) {
  Deck deck = testing::tiny_deck(true);
  deck.run.device = "cuda";
  deck.batch.rows = 2 * world.size();
  deck.batch.microbatch_rows = 1;
  deck.batch.input_length = 5;
  deck.batch.target_length = 3;
  deck.model.hidden = 48;
  deck.model.tied_logits = false;
  deck.optimizer.factor_threshold = 4;
  deck.optimizer.split_above = 100;  // matrices with several owners
  return deck;
}

std::vector<PackedBatch> microbatches(const Deck& deck, const ProcessGrid& grid) {
  const RankRows rows = RankRows::of(deck, grid);
  std::vector<PackedBatch> batches;
  for (std::int64_t row = rows.first; row < rows.first + rows.rows; row += rows.microbatch) {
    batches.push_back(testing::full_batch(deck, row, rows.microbatch));
  }
  return batches;
}

/// Experts of several ranks on 2 and 4; copies of them, whose gradients are summed, on 3 and 4.
int degree_of(const Communicator& world) { return world.size() % 2 == 0 ? 2 : 1; }

enum class Sums { behind, beside };

/// A model and its optimizer on a GPU.
class Training {
 public:
  Training(const Deck& deck, const Communicator& world, int degree)
      : deck_(deck),
        gpus_(world, degree),
        store_(training_parameters(deck), gpus_.grid.coordinates(), DType::f32),
        model_(deck_, store_, gpus_.communicators, kernels_),
        optimizer_(deck.optimizer, store_, gpus_.communicators, kernels_, gpus_.context()),
        context_(gpus_.context()) {
    context_.scratch = &scratch_;
    lay();
    for (Arena* arena : {&weights_, &gradients_, &activations_, &scratch_, &state_}) {
      arena->commit();
      arena->rewind();
    }
    lay();
    optimizer_.initialize(context_, 5);
  }

  void step(std::int64_t number, Sums sums) {
    add_up(microbatches(deck_, gpus_.grid), sums);
    optimizer_.step(context_, number, 0.01);
  }
  /// Sums gradients of ones, discards them while the sums are under way and writes zeros: how many are not zero then.
  std::int64_t written_behind_discarded_sums() {
    std::vector<float> host;
    const auto on_host = [&](const Tensor& flat, float value) {
      host.assign(std::size_t(flat.size()), value);
      return make_tensor(host.data(), 1, flat.size());
    };
    const auto for_flat = [&](auto&& f) {
      for (const Placement placement : {Placement::dense, Placement::expert}) f(store_.gradient_flat(placement));
    };
    for_flat([&](const Tensor& flat) { kernels_.transfer.upload(context_, flat, on_host(flat, 1.0F)); });
    for (std::int64_t bucket = 0; bucket < store_.buckets(); ++bucket) optimizer_.start_reduction(bucket);
    optimizer_.discard_gradients();
    for_flat([&](const Tensor& flat) { kernels_.elementwise.zero(context_, flat); });
    cuda::check(cudaDeviceSynchronize(), "cudaDeviceSynchronize");
    std::int64_t wrong = 0;
    for_flat([&](const Tensor& flat) {
      kernels_.transfer.download(context_, on_host(flat, 1.0F), flat);
      wrong += std::count_if(host.begin(), host.end(), [](float x) { return x != 0.0F; });
    });
    return wrong;
  }
  /// Of masters and moments of this rank.
  std::vector<std::uint32_t> checksums() const {
    std::vector<std::uint32_t> all;
    optimizer_.read_state([&](const StateTensor& state) { all.push_back(checksum(state.tensor)); });
    return all;
  }

 private:
  void lay() {
    store_.lay(weights_, &gradients_);
    optimizer_.lay(state_, scratch_);
    model_.lay(activations_, scratch_, testing::limits_of(deck_, 1), /*training=*/true);
  }
  void add_up(const std::vector<PackedBatch>& batches, Sums sums) {
    const BucketListener start = [this](std::int64_t bucket) { optimizer_.start_reduction(bucket); };
    StepStatistics statistics;
    for (const PackedBatch& batch : batches) {
      const bool listens = sums == Sums::beside && &batch == &batches.back();
      model_.forward_backward(context_, batch, statistics, listens ? start : BucketListener{});
    }
  }

  const Deck deck_;
  const Kernels& kernels_ = kernels_for("cuda");
  const MemorySource& memory_ = *kernels_.transfer.memory;
  Gpus gpus_;
  Arena weights_{"weights", memory_}, gradients_{"gradients", memory_}, activations_{"activations", memory_},
      scratch_{"scratch", memory_}, state_{"state", memory_};
  ParameterStore store_;
  Model model_;
  Optimizer optimizer_;
  KernelContext context_;
};

TEST(DeviceTraining, SumsBesideTheBackwardPassHaveTheBitsOfSumsBehindIt) {
  const Communicator world = Communicator::world();
  const Deck deck = small_deck(world);
  Training behind(deck, world, degree_of(world)), beside(deck, world, degree_of(world));
  for (std::int64_t step = 0; step < 3; ++step) {
    behind.step(step, Sums::behind);
    beside.step(step, Sums::beside);
    EXPECT_EQ(behind.checksums(), beside.checksums()) << "step " << step;
  }
}

TEST(DeviceTraining, NothingIsWrittenBehindSumsThatWereDiscarded) {
  const Communicator world = Communicator::world();
  Training training(small_deck(world), world, degree_of(world));
  for (int round = 0; round < 10; ++round) {
    EXPECT_EQ(training.written_behind_discarded_sums(), 0) << "round " << round;
  }
}

/// Trains some steps and returns what was started in the last of them.
std::string notes_of_a_step(Gpus& gpus, const Deck& deck, bool with_bad_steps, std::uint64_t& state) {
  const KernelContext context = gpus.context();
  Trainer trainer(deck, gpus.grid, gpus.communicators, context);
  trainer.commit_memory();
  trainer.start_from_seed();
  const std::vector<PackedBatch> batches = microbatches(deck, gpus.grid);
  for (std::int64_t step = 0; step < 2; ++step) {
    if (with_bad_steps) {
      const StepLimits limits = step == 0 ? StepLimits{.loss = 0.1} : StepLimits{.norm = 1e-6};
      EXPECT_THROW(trainer.step(step, batches, false, limits), BadStep);
    }
    gpus.notes.clear();
    trainer.step(step, batches, false);
  }
  std::string notes = gpus.notes;
  state = trainer.state_hash();
  return notes;
}

TEST(DeviceTraining, TrainerStartsTheSumOfEveryLayerInTheLastBackwardPass) {
  const Communicator world = Communicator::world();
  if (world.size() == 1) return;
  Deck deck = small_deck(world);
  deck.optimizer.split_above = 1 << 20;  // no rows of sums of matrices
  const int degree = degree_of(world);
  Gpus gpus(world, degree), others(world, degree);
  std::uint64_t state = 0, state_behind_bad_steps = 1;
  const std::string notes = notes_of_a_step(gpus, deck, false, state);
  if (degree > 1) {
    // The sums of the logits, of two layers of the decoder, of two of the encoder, of the embedding. The upper layers
    // are sparse: before their sums rows of gradients go to the experts and back.
    const std::string sparse = world.size() > degree ? "r+ss" : "r+s";
    EXPECT_THAT(notes, ::testing::MatchesRegex("r+s" + sparse + "s" + sparse + "ssg+"));
  } else {
    EXPECT_THAT(notes, ::testing::MatchesRegex("s{8}g+"));
  }
  notes_of_a_step(others, deck, true, state_behind_bad_steps);
  EXPECT_EQ(state, state_behind_bad_steps);
}

}  // namespace
}  // namespace flanmoe
