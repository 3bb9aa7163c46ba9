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

/// Moves rows between hosts when they are started, and notes starts and finishes in their order.
class NotedExchanges : public TensorTransport {
 public:
  NotedExchanges(const Communicator& ranks, std::vector<std::string>& notes)
      : ranks_(Communicator::duplicate(ranks.raw())), notes_(notes) {}
  Ticket start_all_to_all_rows(const Tensor& receive, std::span<const RowRange> receive_rows, const Tensor& send,
                               std::span<const RowRange> send_rows) const override {
    ranks_.start_all_to_all_rows(receive, receive_rows, send, send_rows).finish();
    notes_.push_back(fmt::format("start {}", started_));
    return started_++;
  }
  Ticket start_reduce_scatter_tree(const Tensor& /*flat*/, std::span<const std::int64_t> /*segment_sizes*/,
                                   const Tensor& /*work*/) const override {
    throw LogicError("no sums are asked for here");
  }
  Ticket start_all_gather_segments(const Tensor& /*flat*/,
                                   std::span<const std::int64_t> /*segment_sizes*/) const override {
    throw LogicError("no segments are asked for here");
  }
  void finish(Ticket ticket) const override { notes_.push_back(fmt::format("finish {}", ticket)); }

 private:
  const Communicator ranks_;
  std::vector<std::string>& notes_;
  mutable Ticket started_ = 0;
};

/// Both ways, forward and backward: the first chunk computes while the second one is under way, and the second one
/// while the first one is on its way home.
TEST(Dispatch, RowsOfOneChunkTravelWhileAnotherComputes) {
  const Communicator world = Communicator::world();
  if (world.size() == 1) GTEST_SKIP() << "nothing travels";
  Deck deck = deck_on("cpu");
  deck.moe.dispatch_chunks = 2;
  const std::int64_t rows = 12 / world.size();
  testing::TestModel test(deck, world, world.size(), "cpu", DType::f32, testing::limits_of(deck, rows));
  std::vector<std::string> notes, expected;
  test.communicators.expert.carry_by(std::make_unique<NotedExchanges>(test.communicators.expert, notes));
  test.forget_gradients();
  StepStatistics statistics;
  test.model->forward_backward(test.context, testing::full_batch(deck, world.rank() * rows, rows), statistics);
  for (int pass = 0; pass < 4; ++pass) {  // two sparse layers forward, then backward
    for (const auto& [what, exchange] : {std::pair{"start", 0},
                                         {"start", 1},
                                         {"finish", 0},
                                         {"start", 2},
                                         {"finish", 1},
                                         {"start", 3},
                                         {"finish", 2},
                                         {"finish", 3}}) {
      expected.push_back(fmt::format("{} {}", what, 4 * pass + exchange));
    }
  }
  EXPECT_EQ(notes, expected);
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
