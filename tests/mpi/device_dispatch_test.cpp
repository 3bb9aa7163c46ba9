// Chunks of experts: training has the same bits whatever their number, on hosts and between devices, where exchanges
// run beside what is computed.
#include <gtest/gtest.h>

#include "full_batch.hpp"
#include "model_fixture.hpp"
#include "parallel/device.hpp"
#include "train/trainer.hpp"

namespace flanmoe {
namespace {

/// With all that experts have: 12 of them divide by 1, 2, 3 and 4 ranks, and some get no rows.
Deck deck_on(const std::string& device) {
  Deck deck = testing::tiny_deck(true);
  deck.run.device = device;
  deck.batch.rows = device == "cpu" ? 24 : 12;  // 8 leaves on hosts, but for three ranks
  deck.moe.experts = 12;
  deck.moe.top_k = 2;
  deck.moe.shared_experts = 1;
  deck.moe.expert_dropout = 0.2;
  deck.moe.capacity_factor = 0.0;
  deck.model.multiplicative_bias = true;
  return deck;
}

struct Trained {
  std::uint64_t state = 0;  // hash of weights and moments
  std::vector<double> numbers;
  bool operator==(const Trained&) const = default;
};

/// Two steps; the second one goes on in the memory of the first.
Trained train(const Deck& deck, const Communicator& world, int degree) {
  const ProcessGrid grid(world.size(), world.rank(), degree);
  const std::unique_ptr<Device> device = open_device(deck.run.device, world);
  Communicators communicators = Communicators::make(world, grid);
  device->connect(communicators);
  EXPECT_EQ(communicators.expert.overlaps(), deck.run.device == "cuda" && degree > 1);
  Trainer trainer(deck, grid, communicators, device->context());
  trainer.commit_memory();
  trainer.start_from_seed();
  const RankRows rows = RankRows::of(deck, grid);
  Trained result;
  for (std::int64_t step = 0; step < 2; ++step) {
    std::vector<PackedBatch> batches;
    for (std::int64_t row = rows.first; row < rows.first + rows.rows; row += rows.microbatch) {
      batches.push_back(testing::full_batch(deck, row, rows.microbatch));
    }
    const StepRecord record = trainer.step(step, batches, false).record;
    result.numbers.push_back(record.loss);
    result.numbers.push_back(record.grad_norm);
  }
  result.state = trainer.state_hash();
  return result;
}

void expect_same_bits(const Deck& deck) {
  const Communicator world = Communicator::world();
  for (int degree = 2; degree <= world.size(); ++degree) {
    if (world.size() % degree != 0) continue;
    Deck chunked = deck;
    chunked.moe.dispatch_chunks = 1;
    const Trained whole = train(chunked, world, degree);
    EXPECT_TRUE(std::isfinite(whole.numbers.back()));
    for (const std::int64_t chunks : {deck.run.device == "cuda" ? 0 : 2, 5}) {
      chunked.moe.dispatch_chunks = chunks;
      EXPECT_EQ(train(chunked, world, degree), whole) << "degree " << degree << ", " << chunks << " chunks";
    }
  }
}

TEST(Dispatch, ChunksGiveTheSameBitsOnHosts) {
  const Deck deck = deck_on("cpu");
  expect_same_bits(deck);
  Deck plain = deck;
  plain.model.activation = "relu";
  plain.batch.microbatch_rows = 3;
  expect_same_bits(plain);
}

TEST(Dispatch, ChunksGiveTheSameBitsBetweenDevices) { expect_same_bits(deck_on("cuda")); }

}  // namespace
}  // namespace flanmoe
