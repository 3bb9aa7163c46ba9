#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <chrono>
#include <thread>

#include "data/batch.hpp"
#include "data_fixture.hpp"

namespace flanmoe {
namespace {

using testing::HasSubstr;

class Prefetch : public testing::Test {
 protected:
  /// False when the condition has not come true within a minute.
  template <class Condition>
  static bool comes_true(Condition condition) {
    const auto deadline = std::chrono::steady_clock::now() + std::chrono::minutes(1);
    while (!condition()) {
      if (std::chrono::steady_clock::now() > deadline) return false;
      std::this_thread::yield();
    }
    return true;
  }
  void SetUp() override {
    std::vector<Example> examples;
    for (int i = 0; i < 3000; ++i) {
      Example e;
      e.input.assign(10, 300 + i % 500);
      e.target = {200 + i % 700};
      e.task = "task";
      e.split = "train";
      examples.push_back(e);
    }
    write_shard(path(), examples);
    deck_.batch.rows = 6;
    deck_.batch.input_length = 24;
    deck_.batch.target_length = 8;
    deck_.data.train = path();
  }
  std::string path() const { return folder_.file("p.h5"); }
  std::shared_ptr<BatchSource> source() const { return std::make_shared<BatchSource>(deck_, 1000); }

  TemporaryFolder folder_;
  Deck deck_;
};

TEST_F(Prefetch, GivesTheMicrobatchesOfEveryStepInOrder) {
  Prefetcher ahead(source(), 5, 9, 2, 4, 3, 2);
  BatchSource direct(deck_, 1000);
  for (std::int64_t step = 5; step < 9; ++step) {
    const auto microbatches = ahead.next();
    ASSERT_EQ(microbatches.size(), 2U);
    const std::vector<std::pair<std::int64_t, std::int64_t>> rows = {{2, 3}, {5, 1}};
    for (std::size_t m = 0; m < 2; ++m) {
      const PackedBatch expected = direct.read(step, rows[m].first, rows[m].second);
      EXPECT_EQ(microbatches[m].step, step);
      EXPECT_EQ(microbatches[m].first_row, rows[m].first);
      EXPECT_EQ(microbatches[m].rows, rows[m].second);
      EXPECT_EQ(microbatches[m].encoder.token_T, expected.encoder.token_T);
      EXPECT_EQ(microbatches[m].target_T, expected.target_T);
    }
  }
  EXPECT_THROW(ahead.next(), LogicError);
}

TEST_F(Prefetch, StepsThatAreReadAreTakenWithoutWaiting) {
  constexpr std::int64_t kSteps = 5, kAhead = 2;
  Prefetcher ahead(source(), 0, kSteps, 0, 6, 6, kAhead);
  for (std::int64_t step = 0; step < kSteps; ++step) {
    ASSERT_TRUE(comes_true([&] { return ahead.ready() >= std::min(kAhead, kSteps - step); })) << step;
    ahead.next();
  }
  EXPECT_EQ(ahead.waits(), 0);
}

TEST_F(Prefetch, AStepThatIsNotReadYetIsCounted) {
  const auto shards = source();
  std::unique_lock held(hdf5_mutex());  // the reader stands before the first tokens
  Prefetcher ahead(shards, 0, 2, 0, 6, 6, 2);
  std::thread taker([&] { ahead.next(); });
  EXPECT_TRUE(comes_true([&] { return ahead.waits() > 0; }));
  EXPECT_EQ(ahead.ready(), 0);
  held.unlock();
  taker.join();
  EXPECT_EQ(ahead.waits(), 1);
}

TEST_F(Prefetch, ErrorOfTheThreadIsThrownByNext) {
  auto bytes = file_bytes(path());
  const TokenIds run(10, 300 + 250);
  const auto* raw = reinterpret_cast<const char*>(run.data());
  // The last chunk that holds these tokens: the first chunks stay good.
  const auto at = std::find_end(bytes.begin(), bytes.end(), raw, raw + sizeof(std::int32_t) * run.size());
  ASSERT_NE(at, bytes.end());
  *at = char(*at ^ 4);
  write_bytes(path(), bytes);
  Prefetcher ahead(source(), 0, 10000, 0, 6, 6, 3);
  const std::string message = error_of([&] {
    for (int step = 0; step < 10000; ++step) ahead.next();
  });
  EXPECT_THAT(message, HasSubstr(path()));
  EXPECT_THAT(message, HasSubstr("table 'tokens'"));
  EXPECT_EQ(error_of([&] { ahead.next(); }), message) << "the error stays";
}

TEST_F(Prefetch, EndsEarlyWithoutWaitingForItsReader) {
  for (int round = 0; round < 20; ++round) {
    Prefetcher ahead(source(), 0, 1 << 30, 0, 6, 2, 1 + round % 3);
    for (int step = 0; step < round % 4; ++step) ahead.next();
    // In half of the rounds the thread has filled its queue and waits; in the others it is reading.
    if (round % 2 == 0) std::this_thread::sleep_for(std::chrono::milliseconds(5));
  }
}

TEST_F(Prefetch, LeavesItsSourceUsable) {
  const auto shared = source();
  std::vector<PackedBatch> last;
  {
    Prefetcher ahead(shared, 0, 50, 0, 6, 6, 1);
    for (int step = 0; step < 50; ++step) last = ahead.next();
  }
  ASSERT_EQ(last[0].step, 49);
  EXPECT_EQ(shared->read(49, 0, 6).encoder.token_T, last[0].encoder.token_T);
}

}  // namespace
}  // namespace flanmoe
