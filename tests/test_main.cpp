// main() of every multi-rank test: starts MPI, keeps a watchdog, lets rank 0 report and the others only what failed.
#include <gtest/gtest.h>

#include <chrono>

#include "base/hdf5.hpp"
#include "parallel/communicator.hpp"
#include "parallel/watchdog.hpp"

namespace {

/// A rank that leaves a test early (an exception, a failed ASSERT) would leave the others waiting in a collective: say
/// what failed and end all of them.
class RankReporter : public testing::EmptyTestEventListener {
 public:
  RankReporter(int rank, int size) : rank_(rank), size_(size) {}

 private:
  void OnTestStart(const testing::TestInfo& test) override {
    test_ = fmt::format("{}.{}", test.test_suite_name(), test.name());
  }
  void OnTestPartResult(const testing::TestPartResult& result) override {
    if (!result.failed()) return;
    if (rank_ != 0) {
      fmt::print(stderr, "rank {}: {} failed: {}:{}: {}\n", rank_, test_,
                 result.file_name() != nullptr ? result.file_name() : "?", result.line_number(), result.message());
    }
    if (result.fatally_failed() && size_ > 1) flanmoe::MpiEnvironment::abort(1);
  }
  std::string test_;
  int rank_, size_;
};

int run(int argc, char** argv) {
  const flanmoe::MpiEnvironment mpi(&argc, &argv);
  flanmoe::silence_hdf5();
  testing::InitGoogleTest(&argc, argv);
  const auto world = flanmoe::Communicator::world();
  const flanmoe::Watchdog watchdog(std::chrono::seconds(120));
  auto& listeners = testing::UnitTest::GetInstance()->listeners();
  if (world.rank() != 0) delete listeners.Release(listeners.default_result_printer());
  listeners.Append(new RankReporter(world.rank(), world.size()));
  return world.all_reduce(std::int32_t(RUN_ALL_TESTS()), flanmoe::ReduceOp::max);
}

}  // namespace

int main(int argc, char** argv) {
  try {
    return run(argc, argv);
  } catch (const std::exception& error) {  // only with --gtest_catch_exceptions=0
    fmt::print(stderr, "{}\n", error.what());
    return 1;
  }
}
